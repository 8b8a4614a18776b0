"""Throw-away virtual machines in which the tests meet other kernels and user spaces.

`python -m vagrant test NAME` builds what is stale, boots the guest, runs the tests marked `vm` and
brings back their exit code and junit.xml. The guest has no network; source goes in and results come
out as tar files on disks of their own, so that any kernel with virtio and ext4 will do.
"""
