"""Mathematics on single tensors: no names, no disk. numpy arrays run compiled, torch tensors run eager."""
