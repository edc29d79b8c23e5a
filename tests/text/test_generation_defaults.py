"""What a model's authors recommend is read as it stands, or refused by name."""

from pathlib import Path

import pytest

from banyan_text.generation_defaults import GenerationDefaults, read_generation_defaults
from banyan_text.model_folder import ModelFolderError


def test_recommended_sampling_is_read(tmp_path: Path) -> None:
    assert read_generation_defaults(tmp_path) == GenerationDefaults()
    (tmp_path / "generation_config.json").write_text(
        '{"do_sample": true, "temperature": 0.6, "top_p": 0.95, "top_k": 20, "eos_token_id": 1}'
    )
    assert read_generation_defaults(tmp_path) == GenerationDefaults(0.6, 0.95, 20)
    (tmp_path / "generation_config.json").write_text('{"repetition_penalty": 1.05}')
    assert read_generation_defaults(tmp_path) == GenerationDefaults(repetition_penalty=1.05)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"temperature": "warm"}', "temperature is 'warm', expected a number"),
        ('{"temperature": true}', "temperature is True, expected a number"),
        ('{"top_p": 1.5}', "top_p is 1.5, expected 1e-09 to 1"),
        ('{"top_k": 2.5}', "top_k is 2.5, expected a whole number"),
        ('{"repetition_penalty": 0}', "repetition_penalty is 0, expected 1e-09 to 2"),
        ("[]", "must hold a JSON object"),
    ],
)
def test_what_cannot_be_is_named(tmp_path: Path, content: str, reason: str) -> None:
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(ModelFolderError, match=reason):
        read_generation_defaults(tmp_path)
