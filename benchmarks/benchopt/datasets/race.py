"""The sets of race.py."""

import sys
from pathlib import Path

import numpy as np
from benchopt import BaseDataset


class Dataset(BaseDataset):
    name = "race"
    parameters = {"kind": ["independent", "flights", "text"]}

    def get_data(self):
        sys.path.insert(0, str(Path(__file__).parents[2]))
        from race import RACES

        data = RACES[self.kind]()
        return dict(X=data.X, y=np.where(data.y > 0, 1.0, -1.0))
