"""Make MLflow's users, a duty each, from lines ``NAME PASSWORD``: ``… | python -m serving.mlflow_users --uri URI``.

Everybody reads (``default_permission = READ``), and whoever makes a registered model may change it: runs need no more.
Who promotes needs EDIT on all, by the role ``promoters``. To run it again changes passwords to those given, and nothing
else. The administrator's password is in MLFLOW_AUTH_ADMIN_PASSWORD, as in MLflow's own pod.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable

from mlflow.exceptions import MlflowException
from mlflow.server import get_app_client
from mlflow.server.auth.client import AuthServiceClient

PROMOTERS = "promoters"
_WORKSPACE = "default"


def make_users(uri: str, lines: Iterable[str], promoter: str) -> list[str]:
    """Make each user that is not there, give the others the password given; what was done, a line each.

    Raises:
        ValueError: if a line is not a name and a password; nothing was made then.
        MlflowException: if the server refuses.
    """
    pairs = [line.split() for line in lines if line.strip()]
    for number, pair in enumerate(pairs, 1):
        if len(pair) != 2:
            raise ValueError(f"line {number} has {len(pair)} words; it must be NAME PASSWORD")  # which may be secret
    users: AuthServiceClient = get_app_client("basic-auth", tracking_uri=uri)
    done = []
    for name, password in pairs:
        try:
            users.create_user(name, password)
            done.append(f"{name}: made")
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            users.update_user_password(name, password)
            done.append(f"{name}: was there, has this password")
    if any(name == promoter for name, _ in pairs):
        done.append(_may_promote(users, promoter))
    return done


def _may_promote(users: AuthServiceClient, name: str) -> str:
    role = next((one for one in users.list_roles(_WORKSPACE) if one.name == PROMOTERS), None)
    if role is None:
        role = users.create_role(_WORKSPACE, PROMOTERS, "moves the aliases of registered models")
        users.add_role_permission(role.id, "registered_model", "*", "EDIT")
    if all(one.id != role.id for one in users.list_user_roles(name)):
        users.assign_role(name, role.id)
    return f"{name}: has the role {PROMOTERS}"


def main() -> None:
    """Make the users that standard input names."""
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--uri", default="http://spare-mlflow:5000", help="of the MLflow server")
    parser.add_argument("--admin", default="admin", help="its administrator")
    parser.add_argument("--promoter", default="spare-promote", help="of those given, who moves aliases")
    given = parser.parse_args()
    password = os.environ.get("MLFLOW_AUTH_ADMIN_PASSWORD")
    if not password:
        parser.error("MLFLOW_AUTH_ADMIN_PASSWORD is not set")
    os.environ |= {"MLFLOW_TRACKING_USERNAME": given.admin, "MLFLOW_TRACKING_PASSWORD": password}
    try:
        for line in make_users(given.uri, sys.stdin, given.promoter):
            print(line)
    except (ValueError, MlflowException) as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
