"""docs/slides.md: its example runs."""

import re
from pathlib import Path

from tests.slides.files import aperio, gradient, write_tiff


def test_example(tmp_path, monkeypatch, capsys):
    page = Path(__file__).parents[2] / "docs/slides.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    image = gradient(600, 800)
    text = aperio(power=20, mpp=0.5)
    write_tiff(tmp_path / "case_17.svs", [image, image[2::4, 2::4]], mpp=None, description=text)
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    printed = capsys.readouterr().out
    assert "(200, 150) 4.0 whole number" in printed
    assert "None ()" in printed
