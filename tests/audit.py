"""Known weaknesses of what is installed: python -m tests.audit. Asks the package index through pip-audit.

Ends with 1 where one is known. Where the index tells of none of the packages, as mirrors do, that is said, and is no
failure: nothing was found out then.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any


def judge(dependencies: list[dict[str, Any]]) -> tuple[bool, str]:
    """Whether to go on, and what to say, by what pip-audit wrote of every package."""
    weak = [
        f"{one['name']} {one['version']}: {found['id']}, "
        f"mended in {', '.join(found['fix_versions']) or 'no version yet'}"
        for one in dependencies
        for found in one.get("vulns", [])
    ]
    audited = sum("skip_reason" not in one for one in dependencies)
    if weak:
        return False, "\n".join(weak)
    if not audited:
        return True, "audit skipped: the package index reached here knows of no weaknesses of any package"
    return True, f"{audited} of {len(dependencies)} packages audited, no weakness known"


def main() -> None:
    command = [sys.executable, "-m", "pip_audit", "--format", "json", "--skip-editable", "--progress-spinner", "off"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        dependencies = json.loads(ended.stdout)["dependencies"]
    except (ValueError, KeyError):
        print(f"audit skipped: {(ended.stderr.strip().splitlines() or ['pip-audit gave no answer'])[-1]}")
        return
    goes_on, message = judge(dependencies)
    print(message)
    sys.exit(0 if goes_on else 1)


if __name__ == "__main__":
    main()
