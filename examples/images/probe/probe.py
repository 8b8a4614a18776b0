"""The demo's second container: fetches a page over the task's own loopback, then burns CPU."""

import os
import sys
import time
import urllib.request

url, seconds = sys.argv[1], float(sys.argv[2])
with urllib.request.urlopen(url, timeout=5) as response:
    print(f"GET {url}: {response.status}, {len(response.read())} bytes")
print(f"burning {seconds} s of CPU as uid {os.getuid()}")
while time.process_time() < seconds:
    sum(range(1000))
print(f"burned {time.process_time():.2f} s of CPU")
