"""Price books: versioned data with region, date and source. A price that is not known is an error,
never a guess (contract 7.2)."""

from __future__ import annotations

import functools
from decimal import Decimal
from importlib import resources

import msgspec

from fargatelite.errors import ConfigurationInvalid, StateCorrupt

__all__ = ["PriceBook", "Rates", "load_price_book"]

BOOK = "2026-10.json"
BOOK_VERSION = 1


class Rates(msgspec.Struct, frozen=True):
    """USD per hour of one vCPU and of one GB (2^30 bytes: Fargate's GB is a GiB, contract 1)."""

    vcpu_hour: Decimal
    gb_hour: Decimal


class _Region(msgspec.Struct, frozen=True):
    X86_64: Rates | None = None
    ARM64: Rates | None = None
    ephemeral_gb_hour: Decimal | None = None


class _Book(msgspec.Struct, frozen=True):
    version: int
    effective: str
    seen: str
    source: str
    currency: str
    regions: dict[str, _Region]


class PriceBook(msgspec.Struct, frozen=True, kw_only=True):
    """The prices of one region."""

    region: str
    effective: str
    source: str
    currency: str
    rates: dict[str, Rates]
    ephemeral_gb_hour: Decimal | None

    def rates_of(self, architecture: str) -> Rates:
        """Rates for X86_64 or ARM64.

        Raises: ConfigurationInvalid when the book has none.
        """
        rates = self.rates.get(architecture)
        if rates is None:
            raise ConfigurationInvalid(
                f"no price is known for {architecture} in {self.region} ({self.source}); choose "
                "another region for the bill"
            )
        return rates


@functools.cache
def _load() -> _Book:
    data = resources.files("fargatelite.billing").joinpath("prices", BOOK).read_bytes()
    book = msgspec.json.decode(data, type=_Book)
    if book.version != BOOK_VERSION:
        raise StateCorrupt(f"price book {BOOK} is of version {book.version}, not {BOOK_VERSION}")
    return book


def load_price_book(region: str) -> PriceBook:
    """The prices of a region.

    Raises: ConfigurationInvalid for a region that the book does not have.
    """
    book = _load()
    found = book.regions.get(region)
    if found is None:
        raise ConfigurationInvalid(
            f"no prices are known for region {region}; known are {', '.join(book.regions)}"
        )
    rates = {"X86_64": found.X86_64, "ARM64": found.ARM64}
    return PriceBook(
        region=region,
        effective=book.effective,
        source=book.source,
        currency=book.currency,
        rates={name: value for name, value in rates.items() if value is not None},
        ephemeral_gb_hour=found.ephemeral_gb_hour,
    )
