package mqtt

import "sync"

// MaxInFlight is how many requests of one device may be under way: handed over
// and not answered. AWS IoT has the same number for shadows.
const MaxInFlight = 10

// flights counts the requests under way, by device. A broker that hands over a
// device's messages one after the other never gets beyond one: there the rest
// wait in the broker, which stops reading from the device, and nothing is
// refused. It is brokers that hand over concurrently, and a device on several
// connections or replicas of a topic, that meet the limit.
type flights struct {
	mu sync.Mutex
	n  map[string]int
}

// begin counts one in; false when the device has too many already.
func (f *flights) begin(device string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.n[device] >= MaxInFlight {
		return false
	}
	if f.n == nil {
		f.n = map[string]int{}
	}
	f.n[device]++
	return true
}

func (f *flights) end(device string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.n[device]--; f.n[device] == 0 {
		delete(f.n, device)
	}
}
