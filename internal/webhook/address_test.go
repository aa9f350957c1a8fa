package webhook

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
)

func TestAddresses(t *testing.T) {
	allowed, err := ParseAllowed([]string{"10.1.0.0/16", "127.0.0.1", "fd00:1::/32", "169.254.9.9"})
	if err != nil {
		t.Fatal(err)
	}
	for text, may := range map[string]bool{
		"1.1.1.1": true, "93.184.216.34": true, "100.63.255.255": true, "100.128.0.0": true, "172.15.0.1": true, "172.32.0.1": true, "192.167.1.1": true, "198.17.0.1": true, "223.255.255.255": true,
		"2606:4700::1111": true, "2a00::1": true, "3ffe::1": true, "64:ff9b::101:101": true, "::ffff:1.1.1.1": true, "2001:200::1": true,

		"0.0.0.0": false, "0.1.2.3": false, "10.0.0.1": false, "10.2.0.1": false, "127.0.0.2": false, "127.255.255.255": false, "100.64.0.1": false, "100.127.255.255": false,
		"169.254.169.254": false, "172.16.0.1": false, "172.31.255.255": false, "192.0.0.8": false, "192.0.2.1": false, "192.88.99.1": false, "192.168.0.1": false,
		"198.18.0.1": false, "198.19.255.255": false, "198.51.100.1": false, "203.0.113.1": false, "224.0.0.1": false, "239.255.255.255": false, "240.0.0.1": false, "255.255.255.255": false,
		"::": false, "::1": false, "::1.1.1.1": false, "::127.0.0.1": false, "fe80::1": false, "fe80::1%lo": false, "fec0::1": false, "fc00::1": false, "fd00::1": false, "fd00:2::1": false, "ff02::1": false,
		"2001::1": false, "2001:0:4136:e378::1": false, "2001:10::1": false, "2001:db8::1": false, "2002:7f00:1::1": false, "2002:101:101::1": false, "3fff::1": false, "5f00::1": false, "100::1": false,
		"::ffff:10.0.0.1": false, "::ffff:127.0.0.2": false, "::ffff:169.254.169.254": false, "::ffff:0:1.1.1.1": false,
		"64:ff9b::a00:1": false, "64:ff9b::7f00:2": false, "64:ff9b::a9fe:a9fe": false, "64:ff9b:1::101:101": false, "64:ff9a::101:101": false, "4000::1": false,

		"10.1.2.3": true, "127.0.0.1": true, "::ffff:127.0.0.1": true, "::ffff:10.1.0.1": true, "fd00:1::5": true, "64:ff9b::a01:203": true, "169.254.9.9": true,
	} {
		err := allowed.check(netip.MustParseAddr(text))
		if (err == nil) != may {
			t.Errorf("%s: %v", text, err)
		}
		if err != nil && (!errors.Is(err, errAddress) || !strings.Contains(err.Error(), "--webhook-allow ")) {
			t.Errorf("%s: %v says no remedy", text, err)
		}
	}
	if (Allowed{}).check(netip.Addr{}) == nil {
		t.Error("no address at all is let through")
	}
}

// TestTheRemedyWorks: what an error says to allow lets the address through.
func TestTheRemedyWorks(t *testing.T) {
	for _, text := range []string{"10.0.0.1", "::1", "fe80::1%lo", "::ffff:192.168.1.1", "64:ff9b::a00:1", "2002::1"} {
		a := netip.MustParseAddr(text)
		_, remedy, _ := strings.Cut(Allowed{}.check(a).Error(), "--webhook-allow ")
		allowed, err := ParseAllowed([]string{remedy})
		if err != nil || allowed.check(a) != nil {
			t.Errorf("%s: %q: %v, %v", text, remedy, err, allowed.check(a))
		}
	}
}

func TestParseAllowed(t *testing.T) {
	for _, text := range []string{"", "10.0.0.0/33", "localhost", "10.1", "fe80::1%lo", "::ffff:10.0.0.0/104", "1.1.1.1/", "/8"} {
		if _, err := ParseAllowed([]string{text}); err == nil {
			t.Errorf("%q was taken", text)
		}
	}
}

// FuzzAddress: however an IPv4 address is dressed, it is judged as itself, and
// what is let through is neither private nor local by the library's own account.
func FuzzAddress(f *testing.F) {
	f.Add([]byte{127, 0, 0, 1})
	f.Add([]byte(netip.MustParseAddr("64:ff9b::a00:1").AsSlice()))
	f.Add([]byte(netip.MustParseAddr("::ffff:10.0.0.1").AsSlice()))
	f.Fuzz(func(t *testing.T, b []byte) {
		a, ok := netip.AddrFromSlice(b)
		if !ok {
			return
		}
		err := Allowed{}.check(a)
		if a.Is4() {
			four := a.As4()
			mapped := netip.AddrFrom16(a.As16())
			inside := nat64.Addr().As16()
			copy(inside[12:], four[:])
			for _, dressed := range []netip.Addr{mapped, netip.AddrFrom16(inside)} {
				if (Allowed{}.check(dressed) == nil) != (err == nil) {
					t.Errorf("%s: %v, as %s: %v", a, err, dressed, Allowed{}.check(dressed))
				}
			}
		}
		a = a.Unmap()
		if err == nil && (!a.IsGlobalUnicast() || a.IsPrivate() || a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsMulticast() || a.IsUnspecified()) {
			t.Errorf("%s is let through", a)
		}
		if all := (Allowed{netip.PrefixFrom(a, 0).Masked()}); all.check(a) != nil {
			t.Errorf("%s is refused though everything is allowed", a)
		}
	})
}
