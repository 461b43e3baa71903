"""What an engine is asked to mount that is none of the app's folders: shares in the network, and memory that services share. Pure.

Only known words are passed on. The kernel, and the helpers of mount(8), know many that name a file of the device (`credentials`,
for some helpers every word that begins with `cred`), or another server or share than the one that was allowed (`unc`, `source`,
`mountaddr`). mount(8), nfs(5), mount.cifs(8), tmpfs(5).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

SERVER = r"\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9][A-Za-z0-9.:_-]{0,250}"
PATH = r"[^\0-\x1f,\\]{0,250}"
PLACES = {
    **dict.fromkeys(("nfs", "nfs4"), re.compile(rf"(?P<server>{SERVER})?:/{PATH}")),
    "cifs": re.compile(rf"//(?P<server>{SERVER})/{PATH}"),
    "tmpfs": re.compile(r"(?P<server>)[a-z]{0,20}"),
}
"""Kind -> how its place is said."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


ANY = _words(
    "ro rw sync async dirsync atime noatime diratime nodiratime relatime norelatime strictatime lazytime nolazytime"
    " exec noexec nosuid nodev defaults auto noauto nofail _netdev"
)
_NFS = ANY | _words(
    "addr nfsvers vers minorversion proto tcp udp rdma port mountport mountproto mountvers clientaddr soft softerr softreval"
    " hard intr nointr timeo retrans retry bg fg rsize wsize namlen nconnect max_connect ac noac acregmin acregmax acdirmin"
    " acdirmax actimeo acl noacl cto nocto lock nolock local_lock lookupcache sharecache nosharecache rdirplus nordirplus"
    " resvport noresvport migration nomigration sec xprtsec fsc nofsc sloppy"
)
_CIFS = ANY | _words(
    "addr ip port username user password domain dom workgroup guest netbiosname servern vers sec sign seal uid gid forceuid"
    " noforceuid forcegid noforcegid file_mode dir_mode perm noperm dynperm nodynperm iocharset cache rsize wsize bsize actimeo"
    " acregmax acdirmax soft hard intr nointr nocase ignorecase serverino noserverino user_xattr nouser_xattr unix nounix linux"
    " nolinux posix noposix posixpaths noposixpaths mapchars nomapchars mapposix nomapposix mfsymlinks sfu nosfu brl nobrl"
    " forcemandatorylock nolease locallease handlecache nohandlecache persistenthandles nopersistenthandles resilienthandles"
    " noresilienthandles multichannel nomultichannel max_channels max_credits echo_interval closetimeo handletimeout cifsacl"
    " nocifsacl idsfromsid modefromsid setuids nosetuids nodfs noautotune noblocksend fsc snapshot esize"
)
WORDS = {
    **dict.fromkeys(("nfs", "nfs4"), _NFS),
    "cifs": _CIFS,
    "tmpfs": ANY | _words("size nr_blocks nr_inodes mode uid gid huge mpol"),
}
"""Kind -> words of `o` that are passed on."""
KEYS = frozenset({"type", "device", "o"})
"""Of `driver_opts`."""
_VALUE = re.compile(r"[^\0-\x1f,]{0,200}")
_BINDING = frozenset({"bind", "rbind", "rw", "defaults", ""})


def mounting(options: Mapping[str, str]) -> str:
    """Why an engine is not asked to mount this; "" if it may be. Nothing in it names a file or folder of the device, and what
    it names is what has to be allowed."""
    kind, device = options.get("type", ""), options.get("device", "")
    if unknown := sorted(options.keys() - KEYS - {"volume"}):
        return f"option {unknown[0][:40]!r} is not supported"
    if any("{secret." in text for text in options.values()):
        return "no place for a secret that is made: the engine is asked for it in clear, so give it with `--set-file`"
    place = PLACES[kind].fullmatch(device) if kind in PLACES else None
    if place is None:
        return f"{kind[:20]!r} of {device[:80]!r} is not supported: mount it on the device, and write its path in `volumes`"
    if ".." in device.split("/"):
        return f"{device[:80]!r} leads out of where it begins; write the path that is meant"
    words = [word.partition("=")[::2] for word in options.get("o", "").split(",") if word]
    for name, value in words:
        # A value can be a password.
        if name not in WORDS[kind] or not _VALUE.fullmatch(value):
            return f"mount option {name[:40]!r} is not supported"
    return _server(kind, place["server"] or "", {value for name, value in words if name in ("addr", "ip")})


def _server(kind: str, server: str, addresses: set[str]) -> str:
    """Where both are said, some engines go to one of them, some to the other."""
    if kind == "tmpfs":
        return ""
    if not server and len(addresses) != 1:
        return "its server is not named, or several are: write it in `device`, or as `addr=SERVER` in `o`"
    if wrong := [text for text in addresses if not re.fullmatch(SERVER, text)]:
        return f"{wrong[0][:80]!r} is not a server's name or address"
    if server and {text.strip("[]").lower() for text in addresses} - {server.strip("[]").lower()}:
        return "`addr` in `o` names another server than `device`: write one of them"
    return ""


def binding(options: Mapping[str, str]) -> str:
    """Why a volume that is a folder of the device (`o: bind`) is not taken as one; "" if it is."""
    if unknown := sorted(options.keys() - KEYS):
        return f"option {unknown[0][:40]!r} is not supported"
    if unknown := sorted({*options.get("o", "").split(",")} - _BINDING):
        return f"mount option {unknown[0][:40]!r} is not supported: write `ro` where the volume is mounted"
    return ""
