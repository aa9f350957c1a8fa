package webhook

import (
	"errors"
	"fmt"
	"net/netip"
)

// Allowed are networks that webhooks may reach although they are not public.
type Allowed []netip.Prefix

// ParseAllowed reads networks such as 10.1.0.0/16, or single addresses.
func ParseAllowed(list []string) (Allowed, error) {
	var all Allowed
	for _, text := range list {
		p, err := netip.ParsePrefix(text)
		if a, single := netip.ParseAddr(text); single == nil && a.Zone() == "" {
			p, err = netip.PrefixFrom(a, a.BitLen()), nil
		}
		if err != nil || p.Addr().Is4In6() {
			return nil, fmt.Errorf("%.60q: want a network such as 10.1.0.0/16 or fd00:1::/32, or one address", text)
		}
		all = append(all, p.Masked())
	}
	return all, nil
}

// special are the networks whose addresses are not for everybody, after the
// registries of special-purpose addresses (RFC 6890 and its updates) and those of
// multicast. Of IPv6 only 2000::/3 was ever given out; the rest is refused as a whole.
var special = []struct{ network, what string }{
	{"0.0.0.0/8", "this network"},
	{"10.0.0.0/8", "a private network"},
	{"100.64.0.0/10", "a provider's shared network"},
	{"127.0.0.0/8", "this machine"},
	{"169.254.0.0/16", "link-local"},
	{"172.16.0.0/12", "a private network"},
	{"192.0.0.0/24", "for protocols"},
	{"192.0.2.0/24", "for documentation"},
	{"192.88.99.0/24", "a 6to4 relay"},
	{"192.168.0.0/16", "a private network"},
	{"198.18.0.0/15", "for benchmarks"},
	{"198.51.100.0/24", "for documentation"},
	{"203.0.113.0/24", "for documentation"},
	{"224.0.0.0/4", "multicast"},
	{"240.0.0.0/4", "reserved, or broadcast"},
	{"::/128", "this machine"},
	{"::1/128", "this machine"},
	{"fc00::/7", "a private network"},
	{"fe80::/10", "link-local"},
	{"ff00::/8", "multicast"},
	{"2001::/23", "for protocols, such as Teredo"},
	{"2001:db8::/32", "for documentation"},
	{"2002::/16", "6to4, with another address in it"},
	{"3fff::/20", "for documentation"},
}

var specials = func() (list []netip.Prefix) {
	for _, s := range special {
		list = append(list, netip.MustParsePrefix(s.network))
	}
	return list
}()

var (
	global = netip.MustParsePrefix("2000::/3")
	// nat64 has the IPv4 address that is meant in its last 32 bits (RFC 6052).
	nat64 = netip.MustParsePrefix("64:ff9b::/96")
)

// errAddress: webhooks may not reach an address.
var errAddress = errors.New("webhooks may not reach it")

// check reports an address that webhooks may not reach.
func (l Allowed) check(a netip.Addr) error {
	a = a.Unmap().WithZone("")
	if l.has(a) {
		return nil
	}
	what := kind(a)
	if nat64.Contains(a) {
		inner := embedded(a)
		if l.has(inner) {
			return nil
		}
		what = kind(inner)
	}
	if what == "" {
		return nil
	}
	return fmt.Errorf("%s is %s: %w, unless otad runs with --webhook-allow %s", a, what, errAddress, netip.PrefixFrom(a, a.BitLen()))
}

// has reports whether the address was allowed by name.
func (l Allowed) has(a netip.Addr) bool {
	for _, p := range l {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// kind says what an address is; empty: a public one.
func kind(a netip.Addr) string {
	for i, p := range specials {
		if p.Contains(a) {
			return special[i].what
		}
	}
	if a.Is4() || a.Is6() && (global.Contains(a) || nat64.Contains(a)) {
		return ""
	}
	return "not a public address"
}

func embedded(a netip.Addr) netip.Addr {
	b := a.As16()
	return netip.AddrFrom4([4]byte(b[12:]))
}
