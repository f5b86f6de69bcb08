"""Files in object storage (s3://, gs://): each has a path in a local folder, and is fetched to it
when it is opened. A working directory there is a local folder that is restored and saved
(`workdirs`, which nobody needs but the program).

The folder mirrors the bucket. Beside the place of each file lies a small record of its object, so
that any process that is given the path knows what belongs there; all else is told by
`mirror` (listing, records) and `staging` (fetching, room, locks).
"""

from lrmil_jax.storage.mirror import (
    Record,
    Staging,
    exists,
    local_folder,
    paths,
    record,
    remember,
    shown,
)
from lrmil_jax.storage.objects import is_url
from lrmil_jax.storage.staging import Ahead, fetched, forget, hold

__all__ = ["Ahead", "Record", "Staging", "exists", "fetched", "forget", "hold", "is_url",
           "local_folder", "paths", "record", "remember", "shown"]  # fmt: skip
