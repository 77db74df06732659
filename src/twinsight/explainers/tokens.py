"""Occlusion of vision transformers by leaving tokens out, where painting them over would still compute them."""

import torch
from torch import Tensor

from twinsight.errors import NotApplicable, UserError
from twinsight.explainers.base import Cost, Explainer, Maps, Pair
from twinsight.explainers.geometry import MapGeometry
from twinsight.explainers.occlusion import NOT_FOR
from twinsight.models import HookedModel, TwoViewModel, evaluating


class TokenOcclusion(Explainer):
    """Drop of the similarity when the tokens of a window of one view are left out, and the other view is kept.

    Conditional occlusion (paper, section 3.1) without a baseline: a transformer takes any number of tokens, so nothing
    has to stand for what is erased, and what is left out is not computed. Tokens enter with their positions, and each
    view's are computed once. Positive where the window made the views similar; in units of the similarity.

    Args:
        model: a vision transformer, read by :meth:`TwoViewModel.from_module`.
        window: side of the window in tokens; None is 2/7 of the grid's, as the paper's 64 of 224 pixels.
        stride: its step in tokens.
        protocol: ``"sound"`` or ``"paper"``; nothing differs.

    Raises:
        NotApplicable: no transformer whose blocks take any number of tokens.
        UserError: a window that leaves no token, or a stride below 1.

    Cost: a forward for each window and view, 2 more for the views and 2 for their tokens. Of a window of ``k`` of ``N``
    tokens a forward takes ``1 - k / N`` of the products with weights, ``(1 - k / N)**2`` of those between tokens.

    >>> from twinsight.models import timm_model
    >>> model = timm_model("vit_tiny_patch16_224", options={"depth": 2}, input_size=64)
    >>> view1, view2 = torch.rand(2, 1, 3, 64, 64)
    >>> TokenOcclusion(model)(view1, view2).map1.shape
    torch.Size([1, 4, 4])
    """

    model: HookedModel
    family = "occlusion"
    source = "paper, section 3.1, on tokens"
    not_for = NOT_FOR

    def __init__(
        self, model: TwoViewModel, window: int | None = None, stride: int = 1, protocol: str = "sound"
    ) -> None:
        super().__init__(model, protocol, window=window, stride=stride)
        if not isinstance(model, HookedModel):
            raise NotApplicable("leaving tokens out needs a vision transformer, read by from_module")
        model.first_block()
        side = model.layout.width
        window = max(1, round(side * 2 / 7)) if window is None else window
        if not 1 <= window < side:
            raise UserError(f"`window` must be 1 to {side - 1} of the {side} tokens of a side, got {window}")
        if stride < 1:
            raise UserError(f"`stride` must be at least 1, got {stride}")
        self.options["window"] = window
        self._check()

    def explain(self, pair: Pair) -> Maps:
        keep = self._kept()
        drops = []
        for view in (1, 2):
            pair.bank.forwards += 1
            tokens = self.model.tokens(pair.view(view).unsqueeze(0).clone())
            z = self._embeddings(pair, tokens, keep)
            z1, z2 = (z, pair.z2.unsqueeze(0)) if view == 1 else (pair.z1.unsqueeze(0), z)
            drops.append(pair.score - self.model.similarity(z1, z2))
        steps = len(self._starts())
        return Maps(drops[0].view(steps, steps), drops[1].view(steps, steps))

    def cost(self, image_size: tuple[int, int]) -> Cost:
        return Cost(4 + 2 * len(self._starts()) ** 2)

    def geometry(self, image_size: tuple[int, int]) -> MapGeometry:
        patch = self.model.input_size // self.model.layout.width
        starts = tuple(start * patch for start in self._starts())
        window = self.options["window"] * patch
        size = (self.model.input_size, self.model.input_size)
        return MapGeometry("window_average", size, (window, window), starts, starts)

    def _embeddings(self, pair: Pair, tokens: Tensor, keep: Tensor) -> Tensor:
        """``(windows, d)`` embeddings of a view without the tokens of each window."""

        def embedded(rows: Tensor) -> Tensor:
            return self.model.embed_tokens(tokens[0, keep[rows].to(tokens.device)])

        return pair.bank.rows_in_chunks(len(keep), embedded).float()

    def _starts(self) -> list[int]:
        side, window, stride = self.model.layout.width, self.options["window"], self.options["stride"]
        starts = list(range(0, side - window + 1, stride))
        return starts if starts[-1] == side - window else [*starts, side - window]

    def _kept(self) -> Tensor:
        """``(windows, M)`` places of the tokens that stay, those without a place in the image among them."""
        side, prefix, window = self.model.layout.width, self.model.layout.prefix_tokens, self.options["window"]
        rows = []
        for top in self._starts():
            for left in self._starts():
                inside = torch.zeros(side, side, dtype=torch.bool)
                inside[top : top + window, left : left + window] = True
                rows.append(torch.cat([torch.arange(prefix), prefix + (~inside).flatten().nonzero().flatten()]))
        return torch.stack(rows)

    def _check(self) -> None:
        """All tokens give the embedding of the view, and fewer some."""
        model = self.model
        with evaluating(model), torch.inference_mode(False), torch.no_grad():
            image = model.probe()
            try:
                tokens = model.tokens(image)
                whole = model.embed_tokens(tokens)
                fewer = model.embed_tokens(tokens[:, self._kept()[0].to(tokens.device)])
            except RuntimeError as error:
                raise NotApplicable(f"this transformer takes all of its tokens or none: {error}") from None
            close = torch.allclose(whole.float(), model(image).float(), rtol=1e-3, atol=1e-3)
        if (
            not close
            or fewer.shape != whole.shape
            or tokens.shape[1] != model.layout.prefix_tokens + model.layout.width**2
        ):
            raise NotApplicable("the embedding of this transformer depends on more than its tokens")
