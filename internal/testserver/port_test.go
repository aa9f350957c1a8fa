package testserver

import (
	"net"
	"strconv"
	"testing"
)

func TestFreeAddrIsOfNoConnection(t *testing.T) {
	seen := map[string]bool{}
	for range 200 {
		addr, err := FreeAddr()
		if err != nil {
			t.Fatal(err)
		}
		_, text, err := net.SplitHostPort(addr)
		if err != nil {
			t.Fatal(err)
		}
		port, err := strconv.Atoi(text)
		if err != nil || port < 1024 || port >= firstEphemeral() || seen[addr] {
			t.Fatalf("%s, given before: %t, %v; want a new one below %d", addr, seen[addr], err, firstEphemeral())
		}
		seen[addr] = true
		l, err := net.Listen("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
