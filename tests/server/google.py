"""What stands for Google's store: its XML API is so much like S3 that moto answers, once requests bear S3's signatures in place of Google's tokens.

    python google.py HOST PORT BUCKET KEY_FILE

Writes the key of a service account to KEY_FILE. The bucket wants that account's tokens, signed by itself; others take anybody. A token that is wrong opens
none. Requests that are signed as S3's, by readers, go through.
"""

import base64
import json
import sys
import time

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple
from werkzeug.wrappers import Response

ACCOUNT = "lake@k2.iam.gserviceaccount.com"
REFUSAL = "<?xml version='1.0' encoding='UTF-8'?><Error><Code>AuthenticationRequired</Code><Message>Authentication required.</Message></Error>"
# Like S3's; without signatures moto lets nobody read, and these it does not check.
SIGNED = "AWS4-HMAC-SHA256 Credential=google/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
KEY_BITS = 2048


def main():
    host, port, bucket, key_file = sys.argv[1:]
    key = rsa.generate_private_key(public_exponent=65537, key_size=KEY_BITS)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()).decode()
    account = {"type": "service_account", "private_key": pem, "private_key_id": "1", "client_email": ACCOUNT}
    with open(key_file, "w") as file:
        json.dump(account, file)
    moto = DomainDispatcherApplication(create_backend_app)

    def answer(environ, start):
        kind, _, token = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
        path = environ["PATH_INFO"]
        # Whoever starts the server makes the bucket.
        is_guarded = path.split("/")[1] == bucket and (environ["REQUEST_METHOD"], path) != ("PUT", f"/{bucket}")
        if kind in ("", "Bearer"):
            environ["HTTP_AUTHORIZATION"] = SIGNED
            if not is_of_account(token, key.public_key()) if token else is_guarded:
                return Response(REFUSAL, 401, content_type="application/xml")(environ, start)
        return moto(environ, start)

    run_simple(host, int(port), answer, threaded=True)


def is_of_account(token, key):
    """Whether a JSON web token is signed by this key, and holds now."""
    try:
        signed, _, signature = token.rpartition(".")
        key.verify(decoded(signature), signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        claims = json.loads(decoded(signed.split(".")[1]))
    except (InvalidSignature, ValueError, IndexError):
        return False
    return claims["iss"] == ACCOUNT and claims["iat"] - 60 <= time.time() < claims["exp"]


def decoded(text):
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


if __name__ == "__main__":
    main()
