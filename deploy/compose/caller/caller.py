"""For the demo: places a call every half second, and hands it to the exporter.

The stand-in API takes any ReferenceId for a call that was placed when it is first asked about it.
"""

import json
import os
import random
import time
import urllib.error
import urllib.request
import uuid

CAMPAIGNS = {"otp": 6, "reminder": 3, "emergency": 1}


def hand_over(call: dict[str, object]) -> None:
    """Have the exporter watch a call."""
    request = urllib.request.Request(
        os.environ["ESMS_EXPORTER_URL"] + "/api/v1/calls",
        data=json.dumps({"calls": [call]}).encode(),
        headers={"Authorization": "Bearer " + os.environ["ESMS_EXPORTER_TOKEN"]},
    )
    with urllib.request.urlopen(request, timeout=10):
        pass


while True:
    (campaign,) = random.choices([*CAMPAIGNS], [*CAMPAIGNS.values()])
    try:
        hand_over({"reference_id": str(uuid.uuid4()), "labels": {"campaign": campaign}})
    except urllib.error.URLError as error:
        print("not handed over:", error.reason, flush=True)
    time.sleep(0.5)
