"""config.json and generation_config.json for another vocabulary: only what must change does."""

import pytest

from weightsmith.checkpoint.config_text import config_with_dtype, config_with_vocabulary


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b'{"vocab_size" : 4,\n "x": 4}', b'{"vocab_size" : 6,\n "x": 4}'),
        (b'{"vocab_size": 99}', b'{"vocab_size": 6}'),
        (b'{"text_config": {"vocab_size": 4}}', b'{"text_config": {"vocab_size": 6}}'),
        (b'{"audio_config": {"vocab_size": 9}}', b'{"audio_config": {"vocab_size": 9}}'),
        (b'{"other": {"vocab_size": 4}}', b'{"other": {"vocab_size": 4}}'),
        (b'{"eos_token_id": 2}', b'{"eos_token_id": 5}'),
        (b'{"eos_token_id": [1, 2,  2 ]}', b'{"eos_token_id": [1, 5,  5 ]}'),
        (b'{"bad_words_ids": [[2, 1], [3, 2]], "top_k": 2}', b'{"bad_words_ids": [[5, 1], [3, 5]], "top_k": 2}'),
        (b'{"text_config": {"pad_token_id": 2}}', b'{"text_config": {"pad_token_id": 5}}'),
        (b'{"pad_token_id": null, "eos_token": "2"}', b'{"pad_token_id": null, "eos_token": "2"}'),
        (b'{"a": "\\"eos_token_id\\": 2"}', b'{"a": "\\"eos_token_id\\": 2"}'),
        (b'{"eos_token_id": "2", "list": [2, "x"]}', b'{"eos_token_id": "2", "list": [2, "x"]}'),
        (
            b'{"list": [{"eos_token_id": 2}], "image_token_index": 2}',
            b'{"list": [{"eos_token_id": 2}], "image_token_index": 5}',
        ),
    ],
)
def test_only_sizes_and_ids_change(before, after):
    assert config_with_vocabulary(before, (4, 6), {2: 5}) == after


def test_no_change_is_no_change():
    text = b'{"vocab_size": 4, "eos_token_id": 3, "rope": [1, {"a": [2]}]}'
    assert config_with_vocabulary(text, (4, 4), {}) == text


def test_dtypes_in_lists_are_left_alone():
    text = b'{"dtype": ["float32"], "my_config": [{"dtype": "float32"}], "x_config": {"dtype": "float32"}}'
    assert config_with_dtype(text, "float16") == text.replace(
        b'"x_config": {"dtype": "float32"', b'"x_config": {"dtype": "float16"'
    )
