"""Parsing of arguments that says what may have been meant."""

import argparse
import re
from typing import NoReturn

from ..errors import did_you_mean


class Parser(argparse.ArgumentParser):
    """A parser that says what may have been meant."""

    def error(self, message: str) -> NoReturn:
        super().error(self.with_suggestion(message))

    def with_suggestion(self, message: str) -> str:
        """A message of argparse, and what may have been meant."""
        wrong = re.search(r"invalid choice: '([^']*)'", message) or re.search(r"unrecognized arguments: (--?[\w-]+)",
                                                                              message)
        return message + (did_you_mean(wrong[1], self.known) if wrong else "")

    @property
    def known(self) -> list[str]:
        """All options and choices of this parser, and of the commands below it."""
        found: list[str] = []
        for action in self._actions:
            found += [*action.option_strings, *map(str, action.choices or ())]
            if isinstance(action.choices, dict):
                found += [name for parser in action.choices.values() if isinstance(parser, Parser)
                          for name in parser.known]
        return found
