"""Cross-attention guidance: maps, their distance, windows, refusals; sentences and directions."""

import copy

import pytest
import torch
from retrace.attention.edit_direction import (
    EditDirection,
    add_direction,
    from_bytes,
    to_bytes,
)
from retrace.attention.map_guidance import (
    AttentionGuidance,
    check_step,
    cross_map,
    map_distance,
)
from retrace.attention.plan import RunFacts
from retrace.attention.sentences import TEMPLATES, read_sentences, write_sentences
from retrace.attention.sites import Site
from retrace.diffusion.errors import (
    BlockSelectionError,
    DivergenceError,
    PlanError,
    TokenMapError,
)

SITES = (
    Site("self", "input", 1, 0, 0, 1),
    Site("cross", "input", 1, 0, 0, 1),
    Site("cross", "middle", 0, 0, 1, 2),
    Site("cross", "output", 2, 0, 2, 1),
)
FACTS = RunFacts(10, 0, 8, 8, 1, SITES)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_maps_are_what_attention_multiplies_values_with():
    q, k, v = (random(2, n, 12, seed=i) for i, n in enumerate((9, 5, 5)))
    split = [x.reshape(2, -1, 3, 4).transpose(1, 2) for x in (q, k, v)]
    expected = torch.nn.functional.scaled_dot_product_attention(*split)
    assert torch.allclose(cross_map(q, k, 3) @ split[2], expected, atol=1e-6)


def test_distance_is_summed_over_the_map_and_averaged_over_roles_and_heads():
    found, wanted = random(4, 3, 9, 5), random(4, 3, 9, 5, seed=1)  # 2 roles of 2 images
    squares = (found - wanted) ** 2
    expected = torch.stack([squares[[i, i + 2]].sum((2, 3)).mean() for i in range(2)])
    assert torch.allclose(map_distance(found, wanted, 2), expected)


def test_prompts_of_other_lengths_are_refused():
    with pytest.raises(PlanError, match="similar lengths"):
        map_distance(random(1, 3, 9, 5), random(1, 3, 9, 10), 1)


def test_window_and_layers_are_resolved():
    control = AttentionGuidance(until=0.5, layers="output, middle").prepare(FACTS)
    assert [step for step in range(10) if control.map_guidance(step)] == [0, 1, 2, 3, 4]
    assert set(control.map_guidance(0).weights) == {SITES[2], SITES[3]}


def test_published_weights_are_one():
    control = AttentionGuidance(published=True).prepare(FACTS)
    assert set(control.weights.values()) == {1.0}


def test_normalised_weights_do_not_depend_on_the_image_size():
    large = RunFacts(10, 0, 32, 32, 1, SITES)
    weights = [AttentionGuidance().prepare(facts).weights for facts in (FACTS, large)]
    assert weights[0] == weights[1]
    coarse, fine = weights[0][SITES[2]], weights[0][SITES[1]]
    assert coarse == pytest.approx(4 * fine)  # a quarter of the image tokens


def test_normalised_loss_is_as_large_as_the_published_one_for_sd15_at_512():
    downs = [1] * 5 + [2] * 5 + [4] * 5 + [8]
    sites = tuple(Site("cross", "block", i, 0, i, down) for i, down in enumerate(downs))
    facts = RunFacts(50, 0, 64, 64, 1, sites)
    tokens = {site: facts.tokens(site) for site in sites}
    weights = AttentionGuidance().prepare(facts).weights
    assert sum(weights[s] * tokens[s] for s in sites) == pytest.approx(sum(tokens.values()))


@pytest.mark.parametrize("asked", [{"amount": 0.0}, {"until": 0.0}])
def test_guidance_that_does_nothing_is_refused(asked):
    with pytest.raises(PlanError, match="do nothing"):
        AttentionGuidance(**asked).prepare(FACTS)


def test_unknown_layers_are_refused():
    with pytest.raises(BlockSelectionError):
        AttentionGuidance(layers="output.99").prepare(FACTS)


@pytest.mark.parametrize("factor", [2.0, float("nan"), float("inf")])
def test_a_step_longer_than_the_latent_stops_with_advice(factor):
    x = random(1, 4, 8, 8)
    with pytest.raises(DivergenceError, match="lower the amount"):
        check_step(x * factor, x, 3)
    check_step(x * 0.5, x, 3)


def test_what_was_asked_is_shared_by_copies():
    asked = AttentionGuidance()
    assert copy.deepcopy(asked) is asked


def test_templates_write_as_many_sentences_for_both_words():
    sentences = write_sentences("cat")
    assert len(sentences) == len(TEMPLATES) == len(set(sentences))
    assert all("a cat" in sentence for sentence in sentences)
    assert "an apple" in write_sentences("apple")[0]
    assert write_sentences("the old car")[0] == "a photo of the old car"


def test_lines_are_read_without_the_empty_ones():
    assert read_sentences(" a cat \n\n  two   cats\n", "source") == ["a cat", "two cats"]
    for call in (lambda: read_sentences("\n ", "source"), lambda: write_sentences(" ")):
        with pytest.raises(TokenMapError):
            call()


def test_direction_moves_tokens_and_pooled_vector():
    direction = EditDirection(random(1, 5, 8), random(1, 6, seed=1))
    entry = [random(2, 5, 8, seed=2), {"pooled_output": random(2, 6, seed=3), "strength": 1}]
    ((embedding, extra),) = add_direction([entry], direction, 0.5)
    assert torch.equal(embedding, entry[0] + 0.5 * direction.tokens)
    assert torch.equal(extra["pooled_output"], entry[1]["pooled_output"] + 0.5 * direction.pooled)
    assert extra["strength"] == 1


def test_strength_zero_changes_no_bit():
    entry = [random(1, 5, 8, seed=2), {}]
    ((embedding, _),) = add_direction([entry], EditDirection(random(1, 5, 8), None), 0.0)
    assert torch.equal(embedding, entry[0])


def test_direction_of_another_length_moves_the_first_tokens():
    direction = EditDirection(random(1, 5, 8), None)
    ((longer, _),) = add_direction([[torch.zeros(1, 9, 8), {}]], direction, 1.0)
    assert torch.equal(longer[:, :5], direction.tokens)
    assert not longer[:, 5:].any()
    ((shorter, _),) = add_direction([[torch.zeros(1, 3, 8), {}]], direction, 1.0)
    assert torch.equal(shorter, direction.tokens[:, :3])


def test_direction_of_another_encoder_is_refused():
    with pytest.raises(PlanError, match="same text encoder"):
        add_direction([[torch.zeros(1, 5, 16), {}]], EditDirection(random(1, 5, 8), None), 1.0)


def test_direction_survives_a_file():
    direction = EditDirection(random(1, 5, 8), random(1, 6), "cats to dogs")
    loaded = from_bytes(to_bytes(direction))
    assert torch.equal(loaded.tokens, direction.tokens)
    assert torch.equal(loaded.pooled, direction.pooled)
    assert loaded.note == direction.note


def test_damaged_direction_files_are_refused():
    data = to_bytes(EditDirection(random(1, 5, 8), None))
    for cut in range(0, len(data), 7):
        with pytest.raises(PlanError):
            from_bytes(data[:cut])
    with pytest.raises(PlanError):
        from_bytes(to_bytes(EditDirection(random(1, 5, 8) * torch.nan, None)))
    with pytest.raises(PlanError):
        from_bytes(data.replace(b"retrace-direction", b"another-directio_"))
