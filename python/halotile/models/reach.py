# SPDX-License-Identifier: MIT
"""Objects that a callable can reach through bindings, closures, attributes and globals, and the modules among them."""

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
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ..optional import torch_if_loaded

if TYPE_CHECKING:
    import torch

    T = TypeVar("T")

__all__ = ["all_modules", "mentions", "modules_of", "reachable", "roots_of"]

FAR = 6  # steps between two modules
WIDE = 2000  # elements searched in one container
MOST = 20000  # objects searched in all
CONTAINERS = (dict, list, tuple, set, frozenset, deque)
PLAIN = {bool, int, float, complex, str, bytes, bytearray, range, slice, type(None), type(...), type, types.ModuleType}
EXACT = {*CONTAINERS, OrderedDict}  # types whose truth value says whether they are empty
REGISTERED = {"_parameters", "_buffers", "_modules"}  # attributes of modules that torch itself searches
OF_PYTHON = 1 << 9  # a flag of classes that a class statement made
PROXIES = (weakref.ProxyType, weakref.CallableProxyType)
OPAQUE = {"torch", "numpy"}  # packages whose objects, except modules and functions, hold no user objects


def reachable(value: object, depth: int = 2) -> Iterator[object]:
    """A value, and everything that it reaches within `depth` steps."""
    yield value
    if depth:
        for one in _neighbours(value):
            yield from reachable(one, depth - 1)


def _neighbours(value: object) -> Iterator[object]:
    """What a value reaches in one step."""
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


def _named_by(function: types.FunctionType) -> list[object]:
    """A function's closure, defaults, and the globals in its code, except for torch's functions."""
    names = () if _package_of(function) == "torch" else _globals_in(function.__code__)
    values = [function.__globals__[name] for name in names if name in function.__globals__]
    values += [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # an empty cell
            values.append(cell.cell_contents)
    return values


def _package_of(thing: types.FunctionType | type) -> str:
    """The top-level package of a function or class."""
    return str(thing.__module__ or "").partition(".")[0]


@functools.lru_cache(4096)
def _globals_in(code: types.CodeType) -> frozenset[str]:
    """The names of globals in a function's code and in nested functions."""
    names = {step.argval for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL"}
    inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return frozenset(names.union(*map(_globals_in, inner)))


# ---- deep search -----------------------------------------------------------------------------------------------------


def _hidden_in(things: Iterable[object], kind: type[T], parts: Callable[[T], Iterable[T]]) -> list[T]:
    """Objects of a kind among things and all that these reach through lists, objects, functions and so on, breadth
    first and without parts of those found earlier. No property is evaluated, and nothing is called.

    Args:
        parts: a function from an object of the kind to itself and its regular parts, which are of that kind too.
    """
    found: list[T] = []
    known: dict[int, T] = {}  # by id: parts of what was found
    seen: dict[int, object] = {}  # by id; the reference keeps the id from being reused
    waiting: deque[tuple[Any, int]] = deque((thing, FAR) for thing in things)
    while waiting and len(seen) < MOST + len(known):
        value, depth = waiting.popleft()
        if type(value) in PROXIES:
            value = _proxied(value)
        if type(value) in PLAIN or id(value) in seen:
            continue
        seen[id(value)] = value
        if not issubclass(type(value), kind):
            waiting.extend((one, depth - 1) for one in _contents(value) if depth and _may_hold(one))
        elif id(value) not in known:
            found.append(value)
            for part in parts(value):
                if known.setdefault(id(part), part) is part:
                    seen[id(part)] = part
                    near = (*_attributes(part, REGISTERED), *_of_class(type(part), kind, seen))
                    waiting.extend((one, FAR) for one in near if _may_hold(one))
    return found


def _may_hold(value: Any) -> bool:
    """Whether to search a value: most attributes are numbers or empty dicts of hooks."""
    kind = type(value)
    if kind in EXACT:
        return bool(value) and not (kind is tuple and PLAIN.issuperset(map(type, value)))
    return kind not in PLAIN


def _proxied(proxy: Any) -> object:
    """The object of a weak proxy, or None."""
    with contextlib.suppress(ReferenceError, AttributeError):  # it was collected
        return proxy.__init__.__self__
    return None


def _contents(value: Any) -> Iterator[object]:
    """What an object holds."""
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


def _elements(value: Any, own: type) -> Iterator[object]:
    """The elements of a container, even if its class overrides `__iter__`."""
    base = next(one for one in CONTAINERS if issubclass(own, one))
    elements = base.__iter__(value)
    return itertools.chain(dict.values(value), elements) if base is dict else elements


def _attributes(value: object, others: Collection[str] = ()) -> Iterator[object]:
    """The values of attributes and slots, except for the attributes named in others."""
    with contextlib.suppress(AttributeError, TypeError):
        own = list(itertools.islice(object.__getattribute__(value, "__dict__").items(), WIDE))
        yield from (one for name, one in own if name not in others)
    for slot in _slots_of(type(value)):
        with contextlib.suppress(AttributeError):  # empty
            yield slot.__get__(value)


def _slots_of(cls: type) -> list[types.MemberDescriptorType]:
    slotted = (vars(one) for one in cls.__mro__ if "__slots__" in vars(one))
    return [slot for names in slotted for slot in names.values() if type(slot) is types.MemberDescriptorType]


def _of_class(cls: type, kind: type, seen: dict[int, object]) -> Iterator[object]:
    """The attributes of a class and its bases that `forward` may use: methods have closures and name globals."""
    own = [one for one in cls.__mro__ if not issubclass(kind, one) and _package_of(one) not in OPAQUE]
    used = _names_used([vars(one) for one in own])
    for one in own:
        if id(one) not in seen:
            seen[id(one)] = one
            yield from (value for name, value in list(vars(one).items()) if name in used)


def _names_used(classes: list[Mapping[str, object]]) -> set[str]:
    """The names in `forward`, and in all attributes of the classes that have such a name."""
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


def roots_of(*things: object) -> list[torch.nn.Module]:
    """The modules among things, and modules that these reach other than as submodules: in lists, objects, closures.
    With their submodules, they are all that a run may use, as far as can be seen."""
    import torch

    return _hidden_in(things, torch.nn.Module, torch.nn.Module.modules)


def all_modules(*things: object) -> list[torch.nn.Module]:
    """`roots_of` things and their submodules, once each."""
    return list({id(inner): inner for root in roots_of(*things) for inner in root.modules()}.values())


def modules_of(model: object) -> list[torch.nn.Module]:
    """The modules that a callable is bound to, closes over, or names as globals."""
    torch = torch_if_loaded()
    if torch is None:  # then nobody has made a module
        return []
    return list({id(value): value for value in reachable(model) if isinstance(value, torch.nn.Module)}.values())


def mentions(model: object, package: str) -> bool:
    """Whether a callable reaches something from a package."""
    for value in reachable(model):
        name = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", None)
        if isinstance(name, str) and name.split(".")[0] == package:
            return True
    return False
