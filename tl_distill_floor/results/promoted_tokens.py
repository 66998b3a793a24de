"""`PromotedTokens`: the tokens that some features promote, as far as they were computed."""

from dataclasses import dataclass
from typing import ClassVar

from tl_distill_floor.results.record_files import JsonFile

PROMOTED_FILE = "promoted.json"


@dataclass(frozen=True)
class PromotedTokens(JsonFile):
    """The tokens whose logits each feature raises most, for the features for which they were computed."""

    FILE_NAME: ClassVar[str] = PROMOTED_FILE
    KIND: ClassVar[str] = "promoted-tokens"
    COMMAND: ClassVar[str] = "tl-floor lost --promoted, after deleting that file"

    stats: str
    """Digest of the statistics whose features these are; see `FeatureStats.digest`."""
    tokens: dict[int, tuple[str, ...]]
    """By feature, the tokens in falling order of the increase of their logit; empty if the decoder row is zero, or the
    hook point is not on the residual stream."""

    def merge(self, other: "PromotedTokens") -> "PromotedTokens":
        """Return the tokens of the features of both, in rising order of the feature.

        Args:
            other: tokens of features of the same statistics.

        Returns:
            The merged tokens.

        Raises:
            ValueError: the statistics differ.

        Example:
            >>> PromotedTokens("0f", {7: (" snow",)}).merge(PromotedTokens("0f", {2: (" ice",)})).tokens
            {2: (' ice',), 7: (' snow',)}
        """
        if self.stats != other.stats:
            raise ValueError("the promoted tokens are of the features of different statistics")
        return PromotedTokens(self.stats, dict(sorted((self.tokens | other.tokens).items())))
