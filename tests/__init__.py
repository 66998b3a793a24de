"""Tests of the package. Its type checks are set up here, before any test imports it."""

from tests.helpers.type_checks import make_type_checks_cheap

make_type_checks_cheap()
