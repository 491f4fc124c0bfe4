"""What routers chose, added up over passes."""

import torch

from unimed.model import router_use


def test_shares_are_those_of_all_that_was_routed_layer_by_layer():
    use = router_use.RouterUse(("vqa", "grounding"))
    for layer, share in ((1, [3.0, 1.0]), (0, [1.0, 1.0]), (1, [0.0, 12.0])):
        use.add(layer, torch.tensor(share))
    assert use.shares() == [(0, "vqa", 0.5), (0, "grounding", 0.5), (1, "vqa", 0.1875), (1, "grounding", 0.8125)]


def test_what_texts_chose_is_counted_without_their_padding():
    shares = torch.tensor([[[0.5, 0.5], [1.0, 0.0], [0.25, 0.75]], [[0.0, 1.0], [0.5, 0.5], [0.5, 0.5]]])
    mask = torch.tensor([[1, 0, 1, 1], [1, 1, 1, 1]])  # of which an earlier pass has read the first column
    assert router_use.of_texts(shares, mask).tolist() == [[1.25, 0.75], [1.0, 2.0]]
    assert router_use.of_texts(shares[:, :1], mask).tolist() == [[0.5, 0.5], [0.0, 1.0]], "one decision for a whole text"
