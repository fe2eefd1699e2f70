from __future__ import annotations

import json

from tools.format_json import main


def test_what_is_committed_is_formatted(capsys):
    assert main(["--check"]) == 0, capsys.readouterr().out


def test_a_file_is_formatted_once(tmp_path, capsys):
    path, broken = tmp_path / "a.json", tmp_path / "broken.json"
    content = {"keys": ["image", "label"], "ä": {}}
    path.write_text(json.dumps(content, indent=2))
    assert main([str(path), "--check"]) == 1
    assert path.read_text() == json.dumps(content, indent=2)
    assert main([str(path)]) == 0
    assert path.read_text(encoding="utf-8") == '{\n    "keys": ["image", "label"],\n    "ä": {}\n}\n'
    assert main([str(path), "--check"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    broken.write_text("{")
    assert main([str(broken)]) == 1
    assert "broken.json cannot be read as JSON" in capsys.readouterr().err
