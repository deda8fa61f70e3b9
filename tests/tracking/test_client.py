"""client.py: what MLflow's client shows a server, and what it takes a server's certificate for."""

import datetime
import ssl
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.servers import FLOW, http_server

from premed.errors import UserError
from premed.tracking import client

NAMES = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
TLS = ("MLFLOW_TRACKING_SERVER_CERT_PATH", "MLFLOW_TRACKING_CLIENT_CERT_PATH", "MLFLOW_TRACKING_INSECURE_TLS")


@given(
    environment=st.fixed_dictionaries({}, optional={name: st.sampled_from(["", "a", "ü", "c d"]) for name in NAMES}),
    file=st.none() | st.fixed_dictionaries({}, optional={name: st.sampled_from(["f", "g h"]) for name in NAMES[:2]}),
    netrc=st.sampled_from(["", "machine 127.0.0.1 login n password o", "machine other login n password o"]),
    user=st.sampled_from(["", "u:v@", "u%20x:v%2F@"]),
)
def test_credentials_are_those_that_mlflow_sends(environment, file, netrc, user, tmp_path_factory):
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    home, received = tmp_path_factory.mktemp("home"), list[str]()
    (home / ".netrc").write_text(netrc)
    if file is not None:
        (home / ".mlflow").mkdir()
        lines = [f"{name.lower()} = {value}" for name, value in file.items()]
        (home / ".mlflow" / "credentials").write_text("\n".join(["[mlflow]", *lines]))
    with pytest.MonkeyPatch.context() as patch, http_server(FLOW, received=received) as port:
        for name in (*NAMES, "NETRC"):
            patch.delenv(name, raising=False)
        for name, value in (environment | {"HOME": str(home)}).items():
            patch.setenv(name, value)
        uri = f"http://{user}127.0.0.1:{port}"
        http_request(get_default_host_creds(uri), "/version", "GET")
        assert (client.credentials(uri) or "") == received[0]


@pytest.fixture
def certificate(tmp_path, monkeypatch):
    """A file with a key and a certificate for 127.0.0.1, signed by itself; and a server that asks for that one."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    for name in TLS:
        monkeypatch.delenv(name, raising=False)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now - datetime.timedelta(1))
    builder = builder.not_valid_after(now + datetime.timedelta(1))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), False)
    pem = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    private = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (tmp_path / "both.pem").write_bytes(key.private_bytes(*private) + pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "both.pem")
    context.load_verify_locations(cadata=pem.decode())
    context.verify_mode = ssl.CERT_REQUIRED
    return tmp_path / "both.pem", context


def test_a_server_that_asks_for_a_certificate_is_reached_with_that_of_the_environment(certificate, monkeypatch):
    from premed.execution.endpoints import MLFLOW, Answer, ask_mlflow

    file, context = certificate
    with http_server(FLOW, tls=context) as port:
        uri = f"https://127.0.0.1:{port}"
        monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(file))
        assert ask_mlflow(uri).problem
        with pytest.raises(UserError, match=f"MLFLOW_TRACKING_URI={uri} does not answer"):
            client.connect_or_raise(uri)
        monkeypatch.setenv("MLFLOW_TRACKING_CLIENT_CERT_PATH", str(file))
        assert ask_mlflow(uri) == Answer(MLFLOW, "3.17.2", is_open=True)
        client.reach(uri)
        monkeypatch.delenv("MLFLOW_TRACKING_SERVER_CERT_PATH")
        assert "certificate verify failed" in ask_mlflow(uri).problem
        monkeypatch.setenv("MLFLOW_TRACKING_INSECURE_TLS", "true")
        assert ask_mlflow(uri).is_open


def test_certificates_that_are_not_there_or_contradict_are_one_line(certificate, monkeypatch):
    file, _ = certificate
    for name in TLS[:2]:
        monkeypatch.setenv(name, "/no/such.pem")
        with pytest.raises(UserError, match=f"^{name}=/no/such.pem: is not there; correct or unset the variable$"):
            client.certificates()
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_TRACKING_INSECURE_TLS", "true")
    monkeypatch.setenv(TLS[0], str(file))
    with pytest.raises(UserError, match="^MLFLOW_TRACKING_INSECURE_TLS: does not go with .*; unset one of them$"):
        client.certificates()
