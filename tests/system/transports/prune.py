"""Removes images, in protocol buffers: `prune.py ADDRESS TOKEN [EXCLUDED…]`."""

import sys

import mesos

ADDRESS, TOKEN, *EXCLUDED = sys.argv[1:]

images = [mesos.Image(type=mesos.DOCKER, docker=mesos.ImageDocker(name=name)) for name in EXCLUDED]
client = mesos.Client(ADDRESS, TOKEN)
assert client.call("PRUNE_IMAGES", prune_images=mesos.PruneImages(excluded_images=images)) is None

refused = mesos.PruneImages(excluded_images=[mesos.Image(type=mesos.APPC)])
status, text = client.status(mesos.Call(type=mesos.PRUNE_IMAGES, prune_images=refused).SerializeToString())
assert status == 400 and "`prune_images.excluded_images[0].type`" in text, (status, text)
