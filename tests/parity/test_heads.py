"""Our heads against torchmil's on the same weights, bag by bag.

torchmil has one output where we have one per class, so C is 1. Where it leaves out what the paper
has, our part is set to what torchmil computes, and said so here; the rest is compared with NumPy in
`tests/heads`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from lrmil_jax import heads
from tests.heads import common

models = pytest.importorskip("torchmil.models", reason="pip install -e '.[parity]'")
pytestmark = pytest.mark.parity
D, COUNTS = 8, (30, 17, 9, 1)
TOLERANCE = 1e-5


def bags_of(seed=0):
    """Four bags in one array, of features above 0."""
    rng = np.random.default_rng(seed)
    bags = np.abs(rng.normal(size=(len(COUNTS), max(COUNTS), D))).astype(np.float32)
    return bags, np.arange(max(COUNTS)) < np.array(COUNTS)[:, None]


def parameters(module):
    return {name: value.detach().numpy() for name, value in module.state_dict().items()}


def linear(weights, name):
    """A linear layer as flax has it."""
    layer = {"kernel": weights[f"{name}.weight"].T}
    return layer | ({"bias": weights[f"{name}.bias"]} if f"{name}.bias" in weights else {})


def attention(weights, name):
    """torchmil's attention pool as our `AttentionScores`."""
    layer = {"v": linear(weights, f"{name}.fc1.module"), "w": weights[f"{name}.fc2.weight"].T}
    gate = f"{name}.fc_gated.module"
    return layer | ({"u": linear(weights, gate)} if f"{gate}.weight" in weights else {})


def outputs(head, params):
    """Ours, on all bags at once."""
    bags, mask = bags_of()
    return head.apply({"params": jax.tree.map(jnp.asarray, params)}, bags, mask)


def each(module, **options):
    """torchmil's, bag by bag."""
    bags, _ = bags_of()
    with torch.no_grad():
        for row, count in enumerate(COUNTS):
            yield module(torch.from_numpy(bags[row : row + 1, :count]), **options)


@pytest.mark.parametrize("gated", [False, True])
def test_abmil(gated):
    theirs = models.ABMIL((D,), att_dim=6, gated=gated).eval()
    weights = parameters(theirs)
    pool = attention(weights, "pool")
    params = {
        "attention_v": pool["v"],
        "attention_w": pool["w"],
        "classifier": linear(weights, "classifier.module"),
    } | ({"attention_u": pool["u"]} if gated else {})
    ours = outputs(heads.create("abmil", num_classes=1, hidden=6, gated=gated), params)
    for row, (logit, scores) in enumerate(each(theirs, return_att=True)):
        common.close(ours.logits[row, 0], logit[0], TOLERANCE)
        common.close(ours.attention_logits[row, : COUNTS[row]], scores[0], TOLERANCE)


def smooth_svm(logits, labels):
    """Berrada et al. 2018 with k = 1: torchmil 1.0.2 adds the margins of labels [n, 1] as
    [n, 1, 2], and so sums over all pairs of an instance and a label."""
    labels = labels[:, 0].long()
    margins = 1 - torch.nn.functional.one_hot(labels, 2)
    return torch.nn.functional.cross_entropy(logits + margins, labels)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("label", [0, 1])
def test_clam_sb(gated, label):
    """Its loss of instances is that of two classes that exclude each other, whose sum is halved
    here; bags of fewer than 2 k instances are taught otherwise there and are left out."""
    theirs = models.CLAM_SB((D,), att_dim=6, gated=gated, k_sample=3).eval()
    theirs.inst_loss_fn.forward = smooth_svm
    weights = parameters(theirs)
    names = [f"inst_classifiers.{c}.module" for c in (0, 1)]
    params = {
        "attention": attention(weights, "pool"),
        "classifier": {
            "kernel": np.repeat(weights["classifier.module.weight"].T, 2, 1),
            "bias": np.repeat(weights["classifier.module.bias"], 2),
        },
        "instance_classifiers": {
            "kernel": np.stack([weights[f"{name}.weight"].T for name in names]),
            "bias": np.stack([weights[f"{name}.bias"] for name in names]),
        },
    }
    options = {"width": 0, "hidden": 6, "k": 3, "gated": gated, "subtyping": True}
    head = heads.create("clam_sb", num_classes=2, bag_weight=0.0, **options)
    ours = outputs(head, params)
    labels = jnp.full(len(COUNTS), label)
    loss = head.label_losses(ours, labels, bags_of()[1], lambda logits: logits[:, 0])["instance"]
    found = list(each(theirs, return_att=True, return_emb=True))
    for row, (logit, scores, instances) in enumerate(found):
        common.close(ours.logits[row, 0], logit[0], TOLERANCE)
        common.close(ours.attention_logits[row, : COUNTS[row]], scores[0], TOLERANCE)
        if COUNTS[row] >= 6:
            with torch.no_grad():
                expected = theirs.compute_inst_loss(scores, instances, torch.tensor([label]))
            common.close(loss[row], expected / 2, TOLERANCE)


@pytest.mark.parametrize("deep", [False, True])
def test_dsmil(deep):
    theirs = models.DSMIL((D,), att_dim=6, nonlinear_q=deep, nonlinear_v=deep).eval()
    weights = parameters(theirs)
    params = {
        "instance_classifier": linear(weights, "inst_classifier"),
        "classifier": linear(weights, "bag_classifier"),
        "query": linear(weights, "q_nn.0" if deep else "q_nn"),
    }
    if deep:
        params |= {"query_2": linear(weights, "q_nn.2"), "value": linear(weights, "v_nn.1")}
    options = {"hidden": 6, "deep_queries": deep, "project_values": deep}
    ours = outputs(heads.create("dsmil", num_classes=1, **options), params)
    found = each(theirs, return_att=True, return_inst_pred=True)
    for row, (bag, weights, scored) in enumerate(found):
        common.close(ours.aux["bag"][row, 0], bag[0], TOLERANCE)
        common.close(ours.aux["max_instance"][row, 0], scored.max(), TOLERANCE)
        common.close(ours.logits[row, 0], (bag[0] + scored.max()) / 2, TOLERANCE)
        own = common.weights(ours.class_attention_logits[row, : COUNTS[row], 0])
        common.close(own, weights[0, :, 0], TOLERANCE)


def test_dtfd_afs(monkeypatch):
    """Its other ways give every instance on to tier 2, unlike the paper's; its pseudo-bags are
    made ours."""
    theirs = models.DTFDMIL((D,), att_dim=6, n_groups=3, distill_mode="afs").eval()
    weights = parameters(theirs)
    params = {
        "attention_1": attention(weights, "attention_pool"),
        "classifier_1": linear(weights, "classifier.module"),
        "attention_2": attention(weights, "u_attention_pool"),
        "classifier_2": linear(weights, "u_classifier.module"),
    }

    def shuffle(order):
        order[:] = np.concatenate([order[m::3].copy() for m in range(3)])

    monkeypatch.setattr(np.random, "shuffle", shuffle)
    options = {"hidden": 6, "width": 0, "gated": False, "pseudo_bags": 3, "distill": "afs"}
    ours = outputs(heads.create("dtfd", num_classes=1, **options), params)
    for row, (logit, pseudo) in enumerate(each(theirs, return_pseudo_pred=True)):
        common.close(ours.logits[row, 0], logit[0], TOLERANCE)
        common.close(ours.aux["pseudo_bags"][row, : pseudo.shape[1], 0], pseudo[0], TOLERANCE)


def test_transmil():
    """It has no relu after the embedding, no convolution of the values and no projection of what
    attention reads: features are above 0 and these parts are 1, 0 and 1 here."""
    theirs = models.TransMIL((D,), att_dim=D, n_heads=2, n_landmarks=4).eval()
    weights = parameters(theirs)
    one = {"kernel": np.eye(D, dtype=np.float32), "bias": np.zeros(D, np.float32)}
    params = {
        "embedding": one,
        "token": weights["cls_token"],
        "classifier": linear(weights, "classifier"),
        "norm": {"scale": weights["norm.weight"], "bias": weights["norm.bias"]},
        "ppeg": {},
    }
    for size, name in {7: "proj", 5: "proj1", 3: "proj2"}.items():
        kernel = weights[f"pos_layer.{name}.weight"]
        params["ppeg"][f"kernel_{size}"] = kernel[:, 0].transpose(1, 2, 0)
        params["ppeg"][f"bias_{size}"] = weights[f"pos_layer.{name}.bias"]
    for layer in range(2):
        own, qkv = f"layers.{layer}", weights[f"layers.{layer}.att_module.qkv_nn.weight"]
        scale = {"scale": weights[f"{own}.norm1.weight"], "bias": weights[f"{own}.norm1.bias"]}
        params[f"norm_{layer}"] = scale
        residual = np.zeros((33, 2), np.float32)
        params[f"attention_{layer}"] = {"qkv": {"kernel": qkv.T}, "out": one, "residual": residual}
    head = heads.create("transmil", num_classes=1, width=D, heads=2, landmarks=4)
    ours = outputs(head, params)
    for row, (logit, shown) in enumerate(each(theirs, return_att=True)):
        common.close(ours.logits[row, 0], logit[0], TOLERANCE)
        count = COUNTS[row]
        if int(count**0.5) ** 2 == count and (shown > 0).all():  # no instance stands twice
            own = np.exp(ours.attention_logits[row, :count])
            common.close(own, shown[0], TOLERANCE)


@pytest.mark.parametrize("name", ["mean", "max"])
def test_pooling(name):
    nn = pytest.importorskip("torchmil.nn")
    theirs = {"mean": nn.MeanPool, "max": nn.MaxPool}[name]()
    one = {"kernel": np.eye(D, dtype=np.float32), "bias": np.zeros(D, np.float32)}
    ours = outputs(heads.create(name, num_classes=D), {"classifier": one})
    for row, found in enumerate(each(theirs)):
        common.close(ours.logits[row], found[0], TOLERANCE)
