"""What tables of estimates share: cards by name, and steps of the released network."""

from dataclasses import replace

import torch

from magihuman_core.loading.fits import SECONDS, TAKEN, Target
from magihuman_core.model.config import RELEASED
from magihuman_core.recipes import DISTILLED, SR_540P, SR_1080P, Recipe
from magihuman_core.runtime.cards import Card, find_card
from magihuman_core.runtime.work import Work, work

RECIPES = (DISTILLED, SR_540P, SR_1080P)


def card_of(name: str) -> Card:
    card = find_card(name)
    assert card is not None, name
    return card


def target_of_card(card: Card) -> Target:
    """What a clip is planned for on a card of the list."""
    return Target(card.name, card.memory - TAKEN, card)


def step_work(recipe: Recipe, dtype: torch.dtype = torch.bfloat16) -> Work:
    """Of one step for a clip of 5 seconds."""
    config = replace(RELEASED, **recipe.overrides(RELEASED.layers))
    return work(config, width=recipe.width, height=recipe.height, seconds=SECONDS, dtype=dtype)
