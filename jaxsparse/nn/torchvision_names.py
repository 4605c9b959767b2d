"""The names that torchvision gives to the variables of our ResNets."""

import re

# Patterns in our paths, replaced in this order.
_PATTERNS = (
    (r"shortcut_conv/", "downsample/0/"),
    (r"shortcut_norm/", "downsample/1/"),
    (r"norm(\d)/", r"bn\1/"),
    (r"(kernel|scale)$", "weight"),
    (r"(mean|var)$", r"running_\1"),
)


def torchvision_name(path: str) -> str:
    """Returns the name of a leaf of `resnet`'s variables in torchvision's state dicts.

    It is the `rename` for reading and writing weights, statistics of norms, and masks:

        from jaxsparse.nn import resnet, torchvision_name

        model = resnet(50)
        image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
        shapes = jax.eval_shape(model.init, jax.random.key(0), image)
        variables = jaxsparse.params_from_torch(state_dict, shapes, rename=torchvision_name)
        masks = jaxsparse.masks_from_torch(state_dict, shapes["params"], rename=torchvision_name)
        state_dict = jaxsparse.params_to_torch(variables, rename=torchvision_name)  # and back

    For a new classifier remove "fc" from the params of `shapes`, and "fc.weight" and "fc.bias" from
    the state dict.

    Args:
      path: of the leaf in the variables, or in their "params" or "batch_stats" alone.

    >>> torchvision_name("params/conv1/kernel")
    'conv1.weight'
    >>> torchvision_name("stage2_block1/shortcut_norm/mean")
    'layer2.0.downsample.1.running_mean'
    """
    path = re.sub(r"^(params|batch_stats)/", "", path)
    path = re.sub(r"^stage(\d)_block(\d+)", lambda m: f"layer{m[1]}/{int(m[2]) - 1}", path)
    for ours, theirs in _PATTERNS:
        path = re.sub(ours, theirs, path)
    return path.replace("/", ".")
