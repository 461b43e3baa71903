"""Asking an ACME authority (RFC 8555) for a certificate.

The `acme` library blocks: each of its calls is one or two requests with a time-out, and is made on a worker. All waiting in
between is done here, so that it can be cancelled.
"""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import acme.errors
import josepy.errors
import requests
from acme import client, messages
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from josepy.jwa import ES256
from josepy.jwk import JWKEC

from fractal.api.authority import Answer, Authority, Issued
from fractal.api.certificates import key_pem, new_key
from fractal.api.context import Context
from fractal.api.errors import BackendError, Misconfigured
from fractal.api.names import normal_host
from fractal.api.transport import Certificate
from fractal_acme.config import AcmeConfig
from fractal_acme.proof import challenge_of, proof

AGENT = "fractal-homeserver"
LOOKING = 60.0
"""Seconds in which the authority must have looked at the name."""
ISSUING = 60.0
"""Seconds in which it must have issued, once it has seen the name."""
POLL = 1.0
T = TypeVar("T")


class AcmeAuthority:
    """See `Authority`."""

    needs_traffic = True

    def __init__(self, context: Context, config: AcmeConfig) -> None:
        self._context = context
        self._config = config

    @property
    def identity(self) -> str:
        """The directory's address."""
        return self._config.directory

    async def issue(self, name: str, account: bytes, answer: Answer) -> Issued:
        """An order, a look of the authority at the name, a certificate."""
        name = normal_host(name)
        key = await self._run("the account's key", self._account_key, account)
        acme_client = await self._run("logging in", self._log_in, key)
        certificate_key = new_key(self._context.entropy)
        request = _signing_request(name, certificate_key)
        order = await self._run(f"ordering {name}", acme_client.new_order, request)
        try:
            for authorization in order.authorizations:
                if authorization.body.status != messages.STATUS_VALID:
                    await self._prove(acme_client, authorization, name, key, answer)
        finally:
            await answer(None)
        order = await self._run(f"finishing {name}", self._finish, acme_client, order)
        chain = str(order.fullchain_pem).encode()
        return Issued(certificate=Certificate(chain=chain, key=key_pem(certificate_key)), account=_pem(key))

    def _account_key(self, account: bytes) -> JWKEC:
        if not account:
            return JWKEC(key=new_key(self._context.entropy))
        try:
            key = serialization.load_pem_private_key(account, password=None)
        except ValueError as error:
            raise BackendError(f"{self.identity}: the app's account key cannot be read: {error}") from error
        if not isinstance(key, EllipticCurvePrivateKey):
            raise BackendError(f"{self.identity}: the app's account key is not of the kind that it makes")
        return JWKEC(key=key)

    def _log_in(self, key: JWKEC) -> client.ClientV2:
        config = self._config
        verify: Any = str(config.ca_file) if config.ca_file is not None else True
        net = client.ClientNetwork(
            key, alg=ES256, user_agent=AGENT, timeout=int(config.timeout), verify_ssl=verify
        )
        directory = client.ClientV2.get_directory(config.directory, net)
        terms = getattr(directory.meta, "terms_of_service", None)
        if terms and not config.accept_terms:
            raise Misconfigured("accept_terms", f"{config.directory} wants its terms accepted: {terms}")
        found = client.ClientV2(directory, net)
        wanted = messages.NewRegistration.from_data(
            email=config.email or None, terms_of_service_agreed=config.accept_terms
        )
        try:
            found.new_account(wanted)
        except acme.errors.ConflictError as known:
            net.account = messages.RegistrationResource(body=wanted, uri=known.location)
        return found

    async def _prove(
        self, acme_client: client.ClientV2, authorization: Any, name: str, key: JWKEC, answer: Answer
    ) -> None:
        body = challenge_of(list(authorization.body.challenges))
        if body is None:
            offered = ", ".join(
                sorted(str(c.typ) for c in authorization.body.challenges if hasattr(c, "typ"))
            )
            raise BackendError(
                f"{self.identity}: offers no tls-alpn-01 for {name}, only {offered or 'kinds unknown here'}"
            )
        context = self._context
        shown = await context.workers.run(
            proof, body.chall, key, name, context.entropy, context.clock.wall_ms()
        )
        await answer(shown)
        await self._run(f"proving {name}", acme_client.answer_challenge, body, body.chall.response(key))
        end = context.clock.boottime() + LOOKING
        while True:
            authorization, _ = await self._run(f"proving {name}", acme_client.poll, authorization)
            if authorization.body.status == messages.STATUS_VALID:
                return
            if authorization.body.status != messages.STATUS_PENDING:
                raise BackendError(f"{self.identity}: {name}: {_why(authorization)}", retryable=True)
            if context.clock.boottime() >= end:
                raise BackendError(
                    f"{self.identity}: {name}: it has not looked within {LOOKING:g} s", retryable=True
                )
            await context.clock.sleep(POLL)

    def _finish(self, acme_client: client.ClientV2, order: Any) -> Any:
        # The library compares with the local wall clock, without a zone.
        now = dt.datetime.fromtimestamp(self._context.clock.wall_ms() / 1000, dt.UTC)
        until = now.astimezone().replace(tzinfo=None) + dt.timedelta(seconds=ISSUING)
        return acme_client.finalize_order(order, until)

    async def _run(self, what: str, function: Callable[..., T], /, *arguments: object) -> T:
        def call() -> T:
            with self._errors(what):
                return function(*arguments)

        return await self._context.workers.run(call)

    @contextlib.contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        """Translate the library's errors."""
        where = f"{self.identity}: {what}"
        try:
            yield
        except messages.Error as error:
            raise BackendError(f"{where}: {error.detail or error.typ}", retryable=True) from error
        except acme.errors.TimeoutError as error:
            raise BackendError(f"{where}: not done in time", retryable=True) from error
        except (acme.errors.Error, josepy.errors.Error) as error:
            raise BackendError(f"{where}: {str(error) or type(error).__name__}", retryable=True) from error
        except (requests.exceptions.RequestException, OSError) as error:
            raise BackendError(f"{where}: cannot be reached: {error}", retryable=True) from error
        except (ValueError, KeyError) as error:
            raise BackendError(f"{where}: an answer that makes no sense: {error!r}") from error


def _signing_request(name: str, key: EllipticCurvePrivateKey) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    names = x509.SubjectAlternativeName([x509.DNSName(name)])
    request = builder.add_extension(names, critical=False).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM)


def _pem(key: JWKEC) -> bytes:
    wrapped: Any = key.key
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    pem: bytes = wrapped.private_bytes(encoding, form, serialization.NoEncryption())
    return pem


def _why(authorization: Any) -> str:
    """What the authority says went wrong."""
    errors = [c.error for c in authorization.body.challenges if c.error is not None]
    return "; ".join(str(e.detail or e.typ) for e in errors) or f"it is {authorization.body.status}"


@asynccontextmanager
async def open_acme(context: Context, config: AcmeConfig) -> AsyncIterator[Authority]:
    """Nothing is asked before a certificate is needed. Raises Misconfigured."""
    if not config.directory.startswith("https://"):
        raise Misconfigured("directory", f"{config.directory!r} does not begin with https://")
    if config.ca_file is not None and not config.ca_file.is_file():
        raise Misconfigured("ca_file", f"{config.ca_file} is no file")
    yield AcmeAuthority(context, config)
