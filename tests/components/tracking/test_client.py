from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest

from components.errors import UnavailableError
from components.tracking.client import check_tracking, make_client, split_credentials


def test_a_password_in_the_address_goes_where_the_client_looks_for_it() -> None:
    uri, variables = split_credentials("https://me:s%40cret@mlflow.example:5000/base")
    assert uri == "https://mlflow.example:5000/base"
    assert variables == {"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_PASSWORD": "s@cret"}


@pytest.mark.parametrize("uri", ["sqlite:////home/me@work/mlflow.db", "http://127.0.0.1:5000"])
def test_an_address_without_a_password_stays_as_it_is(uri: str) -> None:
    assert split_credentials(uri) == (uri, {})


def test_a_server_that_does_not_speak_http_is_told_in_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1 << 12)
                connection.sendall(b"+PONG\r\n")

        threading.Thread(target=answer, daemon=True).start()
        error = check_tracking(f"http://127.0.0.1:{server.getsockname()[1]}")
    assert isinstance(error, UnavailableError)
    assert "does not answer" in error.message


def test_a_client_leaves_the_users_choice_of_mlflow_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    make_client(f"sqlite:///{tmp_path / 'a.db'}")
    assert "MLFLOW_TRACKING_URI" not in os.environ
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    make_client(f"sqlite:///{tmp_path / 'b.db'}")
    assert os.environ["MLFLOW_TRACKING_URI"] == "http://127.0.0.1:9"
