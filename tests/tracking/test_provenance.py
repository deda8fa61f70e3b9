"""What a run records of where it comes from."""

import subprocess

from premed.tracking import provenance as module
from premed.tracking.provenance import commit, provenance


def test_without_git_a_run_has_no_commit(monkeypatch):
    def no_git(*args, **more):
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", no_git)
    assert commit() is None and "mlflow.source.git.commit" not in provenance()


def test_somebody_elses_repository_is_not_premeds_commit(monkeypatch, tmp_path):
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / "provenance.py").touch()
    monkeypatch.setattr(module, "__file__", str(tmp_path / "provenance.py"))
    assert commit() is None
