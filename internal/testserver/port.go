package testserver

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"sync"
)

const (
	// ephemeral is the first port that Linux gives to outgoing connections, unless
	// told otherwise.
	ephemeral = 32768
	// ports is how many below it are chosen among.
	ports     = 12_000
	portTries = 100
)

// given are the ports that this process has been given.
var given sync.Map

// FreeAddr returns a free loopback address, for a server that is told its port. It
// lies below the ports of outgoing connections: one that the system gives out could
// be taken by the next connection of a test with many, before the server has it.
func FreeAddr() (string, error) {
	first := firstEphemeral()
	for range portTries {
		port := first - 1 - rand.N(ports)
		if _, taken := given.LoadOrStore(port, true); taken {
			continue
		}
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue // somebody else's
		}
		return l.Addr().String(), l.Close()
	}
	return "", errors.New("no free loopback port")
}

// firstEphemeral is what the system says, if there is room below it.
func firstEphemeral() int {
	var first int
	raw, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err == nil {
		_, err = fmt.Sscan(string(raw), &first)
	}
	if err != nil || first < ports+2000 {
		return ephemeral
	}
	return first
}
