# SPDX-License-Identifier: MIT
"""What a callable reaches: what it is bound to, closes over, holds or names."""

from __future__ import annotations

import contextlib
import dis
import functools
import gc
import itertools
import threading
import types
import weakref
from collections import OrderedDict, deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..optional import torch_if_loaded

if TYPE_CHECKING:
    import torch

__all__ = ["all_modules", "mentions", "modules_of", "reachable", "roots_of"]

FAR = 6  # steps from one module to the next
WIDE = 2000  # elements of one container
MOST = 20000  # things that are looked at in one search
CONTAINERS = (dict, list, tuple, set, frozenset, deque)
PLAIN = {bool, int, float, complex, str, bytes, bytearray, range, slice, type(None), type(...), type, types.ModuleType}
EXACT = {*CONTAINERS, OrderedDict}  # the very types, which say without further ado that they are empty
REGISTERED = {"_parameters", "_buffers", "_modules"}  # attributes of modules where nothing is hidden
OF_PYTHON = 1 << 9  # a flag of classes: made by a class statement, and thus with attributes of their own
PROXIES = (weakref.ProxyType, weakref.CallableProxyType)
OPAQUE = {"torch", "numpy"}  # packages whose objects hold nothing of the user's, but for modules and functions


def reachable(value: Any, depth: int = 2) -> Iterator[Any]:
    """A value, and what it leads to in so many steps."""
    yield value
    if depth:
        for one in _next_to(value):
            yield from reachable(one, depth - 1)


def _next_to(value: Any) -> Iterator[Any]:
    if isinstance(value, functools.partial):
        yield from (value.func, *value.args, *value.keywords.values())
    if isinstance(value, types.MethodType):
        yield from (value.__self__, value.__func__)
    if isinstance(value, weakref.ref):
        yield value()
    if isinstance(value, types.FunctionType):
        yield from _named_by(value)
    elif not isinstance(value, (type, types.ModuleType)):
        yield from list(getattr(value, "__dict__", {}).values())
        for slot in _slots_of(type(value)) if type(value).__module__ != "builtins" else ():
            with contextlib.suppress(AttributeError):  # empty
                yield slot.__get__(value)
        yield from (one for name, one in vars(type(value)).items() if name == "__call__")


def _named_by(function: types.FunctionType) -> list[Any]:
    """What it closes over, its defaults, and the globals in its code; those of torch's own functions are torch's."""
    names = () if _package_of(function) == "torch" else _globals_in(function.__code__)
    values = [function.__globals__[name] for name in names if name in function.__globals__]
    values += [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # an empty cell
            values.append(cell.cell_contents)
    return values


def _package_of(thing: Any) -> str:
    """Of a function or class."""
    return str(thing.__module__ or "").partition(".")[0]


@functools.lru_cache(4096)
def _globals_in(code: types.CodeType) -> frozenset[str]:
    """Names of the globals in a function's code, and in that of functions inside."""
    names = {step.argval for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL"}
    inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return frozenset(names.union(*map(_globals_in, inner)))


# ---- far -------------------------------------------------------------------------------------------------------------


def hidden_in(things: Iterable[Any], kind: type, parts: Any) -> list[Any]:
    """Things of a kind: those given, and those that they hold in lists, objects, functions and so on, each before what
    it leads to. Left out are parts of others that come before them. No property is evaluated, and nothing is called.

    Args:
        parts: parts(thing): a thing of the kind, and what of that kind it consists of in ways that everybody can see.
    """
    found: list[Any] = []
    known: dict[int, Any] = {}  # by id: parts of what was found
    seen: dict[int, Any] = {}  # by id, with a reference: no id is used twice
    waiting: deque[tuple[Any, int]] = deque((thing, FAR) for thing in things)
    while waiting and len(seen) < MOST + len(known):
        value, depth = waiting.popleft()
        if type(value) in PROXIES:
            value = _behind(value)
        if type(value) in PLAIN or id(value) in seen:
            continue
        seen[id(value)] = value
        if not issubclass(type(value), kind):
            waiting.extend((one, depth - 1) for one in _steps(value) if depth and _may_hold(one))
        elif id(value) not in known:
            found.append(value)
            for part in parts(value):
                if known.setdefault(id(part), part) is part:
                    seen[id(part)] = part
                    near = (*_attributes(part, REGISTERED), *_of_class(type(part), kind, seen))
                    waiting.extend((one, FAR) for one in near if _may_hold(one))
    return found


def _may_hold(value: Any) -> bool:
    """Whether it is worth looking into: most attributes are numbers, and hooks that are none."""
    kind = type(value)
    if kind in EXACT:
        return bool(value) and not (kind is tuple and PLAIN.issuperset(map(type, value)))
    return kind not in PLAIN


def _behind(proxy: Any) -> Any:
    with contextlib.suppress(ReferenceError, AttributeError):  # it is gone
        return proxy.__init__.__self__
    return None


def _steps(value: Any) -> Iterator[Any]:
    """What a thing holds."""
    own = type(value)
    if issubclass(own, CONTAINERS):
        yield from itertools.islice(_elements(value, own), WIDE)
    elif issubclass(own, functools.partial):
        yield from (value.func, *value.args, *value.keywords.values())
    elif own is types.MethodType:
        yield from (value.__self__, value.__func__)
    elif issubclass(own, weakref.ref):
        yield weakref.ref.__call__(value)
    elif own is types.FunctionType:
        yield from (*_named_by(value), *vars(value).values())
    elif own in (staticmethod, classmethod):
        yield value.__func__
    elif issubclass(own, np.ndarray):
        yield from itertools.islice(value.flat, WIDE) if value.dtype == object else ()
    elif issubclass(own, threading.local):
        yield from list(threading.local.__getattribute__(value, "__dict__").values())
    elif not issubclass(own, type) and _package_of(own) not in OPAQUE:
        yield from _attributes(value) if own.__flags__ & OF_PYTHON else gc.get_referents(value)
        yield from (one for cls in own.__mro__ for name, one in vars(cls).items() if name in ("__call__", "forward"))


def _elements(value: Any, own: type) -> Iterator[Any]:
    """Of a container, also of one that has an opinion of its own about what its elements are."""
    base = next(one for one in CONTAINERS if issubclass(own, one))
    elements = base.__iter__(value)
    return itertools.chain(dict.values(value), elements) if base is dict else elements


def _attributes(value: Any, others: Collection[str] = ()) -> Iterator[Any]:
    """Values of attributes and slots, but for some names."""
    with contextlib.suppress(AttributeError, TypeError):
        own = list(itertools.islice(object.__getattribute__(value, "__dict__").items(), WIDE))
        yield from (one for name, one in own if name not in others)
    for slot in _slots_of(type(value)):
        with contextlib.suppress(AttributeError):  # empty
            yield slot.__get__(value)


def _slots_of(cls: type) -> list[Any]:
    slotted = (vars(one) for one in cls.__mro__ if "__slots__" in vars(one))
    return [slot for names in slotted for slot in names.values() if type(slot) is types.MemberDescriptorType]


def _of_class(cls: type, kind: type, seen: dict[int, Any]) -> Iterator[Any]:
    """Attributes of a class and of those that it is derived from, and the methods that running it leads to: they close
    over things and name some."""
    own = [one for one in cls.__mro__ if not issubclass(kind, one) and _package_of(one) not in OPAQUE]
    used = _names_used([vars(one) for one in own])
    for one in own:
        if id(one) not in seen:
            seen[id(one)] = one
            yield from (value for name, value in list(vars(one).items()) if name in used)


def _names_used(classes: list[Mapping[str, Any]]) -> set[str]:
    """Names in `forward`, and in whatever of the classes goes by one of these names."""
    used, new = set(), {"forward", "__call__"}
    while new:
        used |= new
        found = (getattr(one.get(name), "__func__", one.get(name)) for name in new for one in classes)
        found = (getattr(one, "fget", None) or getattr(one, "__wrapped__", one) for one in found)
        codes = [one.__code__ for one in found if isinstance(one, types.FunctionType)]
        new = {name for code in codes for name in _all_names(code)} - used
    return used


@functools.lru_cache(4096)
def _all_names(code: types.CodeType) -> frozenset[str]:
    inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return frozenset({*code.co_names}.union(*map(_all_names, inner)))


# ---- modules ---------------------------------------------------------------------------------------------------------


def roots_of(*things: Any) -> list[torch.nn.Module]:
    """The modules among things, and those that these or callables lead to in other ways than as submodules: those in
    lists and dicts, in objects, behind functions. With their submodules they are all that a pass may run, as far as
    that can be seen."""
    import torch

    return hidden_in(things, torch.nn.Module, torch.nn.Module.modules)


def all_modules(*things: Any) -> list[torch.nn.Module]:
    """`roots_of` things, and their submodules, once each."""
    return list({id(inner): inner for root in roots_of(*things) for inner in root.modules()}.values())


def modules_of(model: Any) -> list[Any]:
    """The torch modules that a callable carries: its owner, those that it closes over, binds or names."""
    kind = torch_if_loaded().nn.Module
    return list({id(value): value for value in reachable(model) if isinstance(value, kind)}.values())


def mentions(model: Any, package: str) -> bool:
    """Whether a callable's code names something out of a package."""
    for value in reachable(model):
        name = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", None)
        if isinstance(name, str) and name.split(".")[0] == package:
            return True
    return False
