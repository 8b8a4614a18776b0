"""Price books: versioned data with region, date and source. A price that is not known is an error,
never a guess (contract 7.2).

A user's own book is one small TOML file, named by the setting `price_book` or `--prices`::

    source = "our machine room, 2026"
    effective = "2026-01-01"
    currency = "EUR"
    minimum_s = 1                  # Fargate's is 60
    ephemeral_gb_hour = 0.0001     # only where tasks have more than 20 GiB
    [rates.X86_64]                 # also ARM64, X86_64_SPOT, ARM64_SPOT
    vcpu_hour = 0.021
    gb_hour = 0.0023
"""

from __future__ import annotations

import functools
import tomllib
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from fargatelite.errors import ConfigurationInvalid, StateCorrupt

__all__ = ["Capacity", "PriceBook", "Rates", "load_price_book"]

BOOK = "2026-10.json"
BOOK_VERSION = 1
FARGATE_MINIMUM_S = 60  # Linux (contract 7.1)

Capacity = Literal["FARGATE", "FARGATE_SPOT"]


class Rates(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Price per hour of one vCPU and of one GB (2^30 bytes: Fargate's GB is a GiB, contract 1)."""

    vcpu_hour: Decimal
    gb_hour: Decimal

    def __post_init__(self) -> None:
        _check_rate(self.vcpu_hour)
        _check_rate(self.gb_hour)


def _check_rate(rate: Decimal | None) -> None:
    """msgspec makes a ValidationError, with the place in the book, of a ValueError."""
    if rate is not None and (rate < 0 or not rate.is_finite()):
        raise ValueError(f"a rate is at least 0, not {rate}")


class _RatesByKind(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    X86_64: Rates | None = None
    ARM64: Rates | None = None
    X86_64_SPOT: Rates | None = None
    ARM64_SPOT: Rates | None = None

    def known(self) -> dict[str, Rates]:
        found = {name: getattr(self, name) for name in _RatesByKind.__struct_fields__}
        return {name: rates for name, rates in found.items() if rates is not None}


class _Region(_RatesByKind, frozen=True, forbid_unknown_fields=True):
    ephemeral_gb_hour: Decimal | None = None
    note: str = ""


class _Book(msgspec.Struct, frozen=True):
    version: int
    effective: str
    seen: str
    source: str
    currency: str
    regions: dict[str, _Region]


class _OwnBook(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    source: str
    effective: Annotated[str, msgspec.Meta(pattern=r"^\d{4}-\d{2}-\d{2}$")]
    currency: Annotated[str, msgspec.Meta(pattern=r"^[A-Z]{3}$")]
    rates: _RatesByKind
    minimum_s: Annotated[int, msgspec.Meta(ge=0)] = FARGATE_MINIMUM_S
    ephemeral_gb_hour: Decimal | None = None

    def __post_init__(self) -> None:
        _check_rate(self.ephemeral_gb_hour)


class PriceBook(msgspec.Struct, frozen=True, kw_only=True):
    """The prices of one region."""

    region: str
    effective: str
    source: str
    currency: str
    rates: dict[str, Rates]
    ephemeral_gb_hour: Decimal | None
    minimum_s: int = FARGATE_MINIMUM_S

    def rates_of(self, architecture: str, capacity: Capacity = "FARGATE") -> Rates:
        """Rates for X86_64 or ARM64, on demand or Spot.

        Raises: ConfigurationInvalid when the book has none.
        """
        kind = f"{architecture}_SPOT" if capacity == "FARGATE_SPOT" else architecture
        rates = self.rates.get(kind)
        if rates is None:
            shown = f"{architecture} on Spot" if capacity == "FARGATE_SPOT" else architecture
            raise ConfigurationInvalid(
                f"no price is known for {shown} in {self.region} ({self.source}); choose "
                "another region for the bill, or a price book of your own (--prices)"
            )
        return rates


@functools.cache
def _load() -> _Book:
    data = Path(__file__).with_name("prices").joinpath(BOOK).read_bytes()
    book = msgspec.json.decode(data, type=_Book)
    if book.version != BOOK_VERSION:
        raise StateCorrupt(f"price book {BOOK} is of version {book.version}, not {BOOK_VERSION}")
    return book


@functools.cache
def load_price_book(region: str, own: str | None = None) -> PriceBook:
    """The prices of a region, or those of a user's own book, which holds in every region.

    Raises: ConfigurationInvalid for a region that the book does not have, and for a file that is
    not there or not a price book.
    """
    if own is not None:
        return _load_own(region, Path(own))
    book = _load()
    found = book.regions.get(region)
    if found is None:
        raise ConfigurationInvalid(
            f"no prices are known for region {region}; known are {', '.join(book.regions)}; a "
            "price book of your own (--prices) holds in every region"
        )
    return PriceBook(
        region=region,
        effective=book.effective,
        source=f"{book.source}; {found.note}" if found.note else book.source,
        currency=book.currency,
        rates=found.known(),
        ephemeral_gb_hour=found.ephemeral_gb_hour,
    )


def _load_own(region: str, path: Path) -> PriceBook:
    try:
        values = tomllib.loads(path.read_text(), parse_float=Decimal)
        book = msgspec.convert(values, _OwnBook)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationInvalid(f"cannot read price book {path}: {error}", path=path) from error
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ConfigurationInvalid(f"price book {path}: {error}", path=path) from error
    return PriceBook(
        region=region,
        effective=book.effective,
        source=book.source,
        currency=book.currency,
        rates=book.rates.known(),
        ephemeral_gb_hour=book.ephemeral_gb_hour,
        minimum_s=book.minimum_s,
    )
