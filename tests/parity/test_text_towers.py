"""Published text towers and tokenizers against transformers and open_clip, with random weights.

`python tests/parity/test_text_towers.py` writes the goldens that tests/encoders/test_language.py
compares with, from PyTorch alone.
"""

import importlib.util
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity

_ENCODERS = Path(__file__).parents[1] / "encoders"
GOLDENS = _ENCODERS / "goldens" / "text_towers.json"
# Test folders are no packages, so the towers' maker is loaded by its path.
_spec = importlib.util.spec_from_file_location("published_text", _ENCODERS / "published_text.py")
published = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(published)

TOLERANCE = 1e-5  # of the largest number
# Towers by layout, each with the name under which it is loaded and its GELU.
TOWERS = {
    "open_clip": ("quiltnet-b-32", "gelu"),
    "openai": ("clip-vit-b-32", "quick_gelu"),
    "hf_clip": ("plip", "quick_gelu"),
    "conch": ("conch", "gelu"),
}
SHORT = [published.SENTENCES[index] for index in (0, 4, 14, 16)]


def relative_error(found, expected):
    return np.abs(found - expected).max() / np.abs(expected).max()


def layout_of(kind):
    return "open_clip" if kind == "openai" else kind


def reference_tokens(kind, folder, sentences, context):
    """Token numbers by the publisher's own tokenizer, int64 [n, context]."""
    if kind in ("open_clip", "openai"):
        from open_clip.tokenizer import SimpleTokenizer

        path = published.write_openai_tokenizer(folder)
        return SimpleTokenizer(str(path))(sentences, context_length=context)
    options = {"padding": "max_length", "max_length": context, "return_tensors": "pt"}
    if kind == "hf_clip":
        from transformers import CLIPTokenizer

        found = CLIPTokenizer.from_pretrained(published.write_clip_tokenizer(folder))
        return found(sentences, truncation=True, **options)["input_ids"]
    from transformers import PreTrainedTokenizerFast

    found = PreTrainedTokenizerFast(
        tokenizer_file=str(published.write_conch_tokenizer(folder)),
        bos_token="<start_of_text>",
        eos_token="<end_of_text>",
        pad_token="<pad>",
    )
    return found(sentences, truncation=True, **options)["input_ids"]


def reference_tower(kind, tensors, folder, sizes):
    """The PyTorch tower with these very tensors, as a function of token numbers."""
    tensors = {name: torch.from_numpy(value) for name, value in tensors.items()}
    if kind == "hf_clip":
        return _reference_hf(tensors, folder, sizes)
    from open_clip.transformer import QuickGELU, TextTransformer

    model = TextTransformer(
        context_length=sizes["tokens"],
        vocab_size=sizes["vocabulary"],
        width=sizes["width"],
        heads=sizes["heads"],
        layers=sizes["depth"],
        output_dim=sizes["shared_width"],
        embed_cls=kind == "conch",
        act_layer=QuickGELU if TOWERS[kind][1] == "quick_gelu" else torch.nn.GELU,
        norm_layer=torch.nn.LayerNorm,
    )
    own = {
        name.removeprefix("text."): value
        for name, value in tensors.items()
        if name not in ("logit_scale", "visual.proj_contrast")
    }
    model.load_state_dict(own, strict=True)
    return model.eval()


def _reference_hf(tensors, folder, sizes):
    from safetensors.torch import save_file
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=sizes["vocabulary"],
        hidden_size=sizes["width"],
        intermediate_size=4 * sizes["width"],
        num_hidden_layers=sizes["depth"],
        num_attention_heads=sizes["heads"],
        max_position_embeddings=sizes["tokens"],
        projection_dim=sizes["shared_width"],
        bos_token_id=sizes["vocabulary"] - 2,
        eos_token_id=sizes["vocabulary"] - 1,
        pad_token_id=sizes["vocabulary"] - 1,
    )
    config.save_pretrained(folder)
    tensors = {name: value for name, value in tensors.items() if name != "logit_scale"}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    model, about = CLIPTextModelWithProjection.from_pretrained(folder, output_loading_info=True)
    assert not any(about[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    model.eval()
    return lambda tokens: model(input_ids=tokens).text_embeds


def reference(kind, folder, sentences, sizes=None, seed=0):
    """Tokens and embeddings of length 1 by PyTorch."""
    sizes = {**published.SIZES, **(sizes or {})}
    tensors = published.tensors(layout_of(kind), sizes, seed)
    with torch.no_grad():
        tokens = reference_tokens(kind, folder, sentences, sizes["tokens"])
        output = reference_tower(kind, tensors, folder, sizes)(tokens)
        return tokens.numpy(), torch.nn.functional.normalize(output, dim=-1).numpy()


def ours(kind, folder, sizes=None, seed=0):
    """Our tower from the same tensors, by its own file and tokenizer."""
    from lrmil_jax.encoders import language

    sizes = {**published.SIZES, **(sizes or {})}
    path = folder / "weights.safetensors"
    safetensors.numpy.save_file(published.tensors(layout_of(kind), sizes, seed), path)
    tokenizer = published.WRITERS[layout_of(kind)](folder)
    return language.load(TOWERS[kind][0], path, tokenizer=tokenizer, **sizes)


def make_goldens(folder):
    """What PyTorch says of the tiny towers, to eight digits."""
    goldens = {"how": "python tests/parity/test_text_towers.py"}
    for kind in TOWERS:
        (folder / kind).mkdir()
        rows = reference_tokens(kind, folder / kind, published.SENTENCES, 120).tolist()
        goldens[kind] = {
            "tokens": [_until_end(kind, row) for row in rows],
            "embedding": reference(kind, folder / kind, SHORT)[1].round(8).tolist(),
        }
    # A sentence after which there is no place for filling.
    count = len(goldens["conch"]["tokens"][published.SENTENCES.index(SHORT[1])])
    full = reference("conch", folder / "conch", SHORT[1:2], {"tokens": count})[1]
    goldens["conch"]["full"] = full.round(8).tolist()
    return goldens


def _until_end(kind, row):
    end = 2 if kind == "conch" else published.VOCABULARY - 1
    return row[: row.index(end) + 1]


@pytest.mark.parametrize("kind", TOWERS)
@pytest.mark.parametrize("seed", [0, 1])
def test_embeddings(kind, seed, tmp_path, record_property):
    tokens, expected = reference(kind, tmp_path, SHORT, seed=seed)
    tower = ours(kind, tmp_path, seed=seed)
    found, mask = tower.tokenizer.encode(SHORT, limit=tower.context)
    np.testing.assert_array_equal(found[mask], tokens[:, : mask.shape[1]][mask])
    error = relative_error(tower.embed(SHORT), expected)
    record_property("relative_error", float(error))
    print(f"{kind} seed {seed}: {error:.1e}")
    assert error <= TOLERANCE


@pytest.mark.parametrize("kind", TOWERS)
def test_sentences_that_fill_the_context(kind, tmp_path):
    """With nothing filled CONCH's class token sees itself: the other side of its mask."""
    lengths = [2, 3, 11, 12]
    tokens = np.zeros((4, 12), np.int64)
    end = 2 if kind == "conch" else published.VOCABULARY - 1
    for row, length in zip(tokens, lengths, strict=True):
        row[:length] = [7, *range(20, 18 + length), end][:length]
        row[length - 1] = end
    sizes = {**published.SIZES, "tokens": 12}
    tensors = published.tensors(layout_of(kind), sizes)
    if kind == "hf_clip":
        tokens[tokens == 0] = end
    with torch.no_grad():
        model = reference_tower(kind, tensors, tmp_path, sizes)
        expected = model(torch.from_numpy(tokens)).numpy()
    tower = ours(kind, tmp_path, {"tokens": 12})
    mask = np.arange(12)[None] < np.array(lengths)[:, None]
    found = np.asarray(tower._embed(tower.params, tokens.astype(np.int32), mask))
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    error = relative_error(found, expected)
    print(f"{kind} full: {error:.1e}")
    assert error <= TOLERANCE


@pytest.mark.slow
def test_width_and_depth_of_clip(tmp_path):
    """The published size, except for the vocabulary."""
    sizes = {"tokens": 77, "width": 512, "depth": 12, "heads": 8, "shared_width": 512}
    _, expected = reference("openai", tmp_path, SHORT, sizes)
    error = relative_error(ours("openai", tmp_path, sizes).embed(SHORT), expected)
    print(f"openai B: {error:.1e}")
    assert error <= TOLERANCE


@pytest.mark.slow
def test_width_and_depth_of_conch(tmp_path):
    sizes = {"tokens": 127, "width": 768, "depth": 12, "heads": 12, "shared_width": 512}
    _, expected = reference("conch", tmp_path, SHORT, sizes)
    error = relative_error(ours("conch", tmp_path, sizes).embed(SHORT), expected)
    print(f"conch B: {error:.1e}")
    assert error <= TOLERANCE


@pytest.mark.parametrize("kind", TOWERS)
def test_difficult_sentences_are_tokenized_alike(kind, tmp_path):
    from lrmil_jax.encoders.text_files import read_tokenizer

    expected = reference_tokens(kind, tmp_path, published.SENTENCES, 120).tolist()
    tokenizer = read_tokenizer(published.WRITERS[layout_of(kind)](tmp_path))
    for sentence, row in zip(published.SENTENCES, expected, strict=True):
        found = tokenizer.encode([sentence], limit=120)[0][0].tolist()
        assert found == _until_end(kind, row), sentence


def test_openai_vocabulary_is_read_alike(tmp_path):
    """The real file, as open_clip brings it: every number, in all three forms of it."""
    import open_clip.tokenizer
    from transformers import CLIPTokenizer

    from lrmil_jax.encoders.text_files import read_tokenizer

    path = Path(open_clip.tokenizer.default_bpe())
    expected = open_clip.tokenizer.SimpleTokenizer()
    found = read_tokenizer(path)
    assert found.size == 49408
    assert (found.start, found.end) == (49406, 49407)
    theirs = expected(published.SENTENCES, context_length=200).tolist()
    for sentence, row in zip(published.SENTENCES, theirs, strict=True):
        ids = found.encode([sentence], limit=200)[0][0].tolist()
        assert ids == row[: row.index(49407) + 1], sentence
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    numbers = {names.get(token, token): number for token, number in expected.encoder.items()}
    (tmp_path / "vocab.json").write_text(json.dumps(numbers))
    lines = ["#version: 0.2", *map(" ".join, expected.bpe_ranks)]
    (tmp_path / "merges.txt").write_text("\n".join(lines) + "\n")
    hugging_face = CLIPTokenizer.from_pretrained(tmp_path)
    theirs = hugging_face(published.SENTENCES)["input_ids"]
    by_parts = read_tokenizer(tmp_path)
    hugging_face.save_pretrained(tmp_path / "saved")
    whole = read_tokenizer(tmp_path / "saved")
    for sentence, row in zip(published.SENTENCES, theirs, strict=True):
        assert by_parts.encode([sentence], limit=200)[0][0].tolist() == row, sentence
        assert whole.encode([sentence], limit=200)[0][0].tolist() == row, sentence


def test_wrong_encodings_are_not_repaired(tmp_path):
    """The one thing in which OpenAI's tokenizer differs, so that it is known if it changes."""
    from lrmil_jax.encoders.text_files import clean_as_openai

    ftfy = pytest.importorskip("ftfy")
    assert ftfy.fix_text(published.BROKEN_SENTENCE).startswith("naïve")
    assert clean_as_openai(published.BROKEN_SENTENCE).startswith("naã")


def test_files_that_transformers_writes(tmp_path):
    """Both towers in one file, as PLIP's: what belongs to the image tower is let be."""
    from transformers import CLIPConfig, CLIPModel

    from lrmil_jax.encoders import language

    sizes, end = published.SIZES, published.VOCABULARY - 1
    shape = {"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 3}
    shape["num_attention_heads"] = 2
    text = {**shape, "vocab_size": published.VOCABULARY, "max_position_embeddings": 48}
    text |= {"bos_token_id": end - 1, "eos_token_id": end, "pad_token_id": end}
    vision = {**shape, "image_size": 8, "patch_size": 4}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).eval()
    model.save_pretrained(tmp_path)
    tokens = reference_tokens("hf_clip", tmp_path / "tokenizer", SHORT, 48)
    with torch.no_grad():
        expected = model.get_text_features(input_ids=tokens)
        expected = getattr(expected, "pooler_output", expected).numpy()
    tower = language.load(
        "plip", tmp_path / "model.safetensors", tokenizer=tmp_path / "tokenizer", **sizes
    )
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert relative_error(tower.embed(SHORT), expected) <= TOLERANCE
    assert tower.logit_scale == pytest.approx(model.logit_scale.exp().item(), rel=1e-6)


def test_goldens_are_those_of_the_reference(tmp_path):
    stored, found = json.loads(GOLDENS.read_text()), make_goldens(tmp_path)
    assert stored.keys() == found.keys()
    np.testing.assert_allclose(stored["conch"]["full"], found["conch"]["full"], atol=2e-6)
    for kind in TOWERS:
        assert stored[kind]["tokens"] == found[kind]["tokens"]
        np.testing.assert_allclose(stored[kind]["embedding"], found[kind]["embedding"], atol=2e-6)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        GOLDENS.write_text(json.dumps(make_goldens(Path(temporary))) + "\n")
