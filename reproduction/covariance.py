"""What is M made of? M of networks beside M of the same activations in another order, and of noise with their covariance.

    posthoc extract RUN --probe npz:FILE --images 2000 --signals mean -o activations.h5
    python -m reproduction.covariance NAME activations.h5

H_eff and M of every checkpoint and their nulls are kept in KEEP/covariance/NAME.json.
"""

import argparse
import json
from pathlib import Path

import posthoc
from posthoc.analysis.protocol import Protocol
from posthoc.files import replacing
from reproduction.kept import pruned

MEASURES = ("integration", "metastability")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="how the network is called")
    parser.add_argument("activations", type=Path, help="a file of `posthoc extract`")
    parser.add_argument("--smooth", type=int, default=5, help="width of the moving mean (default: 5)")
    parser.add_argument("--nulls", type=int, default=99, help="draws of the null that decides (default: 99)")
    parser.add_argument("--keep", type=Path, default=Path("data/reproduction"), help="default: data/reproduction")
    args = parser.parse_args()
    protocol = Protocol.named("published", smooth=args.smooth)
    metrics = posthoc.compute_metrics(args.activations, protocol, args.nulls, measures=MEASURES)
    folder = args.keep / "covariance"
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / f"{args.name}.json") as temporary:
        temporary.write_text(json.dumps(pruned(metrics)) + "\n")


if __name__ == "__main__":
    main()
