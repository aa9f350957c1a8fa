package main

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/otad/otad/internal/mqtt/broker"
)

// limitNames are what --mqtt-limit can set, and where it goes.
func limitNames(l *broker.Limits) map[string]any {
	return map[string]any{
		"packet-bytes": &l.PacketBytes, "topic-levels": &l.TopicLevels, "topic-bytes": &l.TopicBytes, "client-id-bytes": &l.ClientIDBytes,
		"receive-maximum": &l.ReceiveMaximum, "topic-aliases": &l.TopicAliases, "inflight": &l.Inflight, "queued": &l.Queued,
		"queued-bytes": &l.QueuedBytes, "session-expiry": &l.SessionExpiry, "keep-alive": &l.KeepAlive, "connections": &l.Connections, "sessions": &l.Sessions,
		"subscriptions": &l.Subscriptions, "retained": &l.Retained, "retained-per-client": &l.RetainedPerClient,
		"packet-rate": &l.PacketRate, "byte-rate": &l.ByteRate, "connect-rate": &l.ConnectRate, "failure-rate": &l.FailureRate,
		"connect-timeout": &l.ConnectTimeout, "write-timeout": &l.WriteTimeout, "stall-timeout": &l.StallTimeout,
	}
}

// brokerLimits reads NAME=VALUE settings.
func brokerLimits(settings []string) (broker.Limits, error) {
	var l broker.Limits
	names := limitNames(&l)
	for _, s := range settings {
		name, value, ok := strings.Cut(s, "=")
		field := names[name]
		if !ok || field == nil {
			known := make([]string, 0, len(names))
			for n := range names {
				known = append(known, n)
			}
			slices.Sort(known)
			return l, usageError{fmt.Errorf("--mqtt-limit %q: want NAME=VALUE with one of %s", s, strings.Join(known, ", "))}
		}
		if err := setLimit(field, value); err != nil {
			return l, usageError{fmt.Errorf("--mqtt-limit %s: %w", s, err)}
		}
	}
	return l, nil
}

func setLimit(field any, value string) error {
	if d, ok := field.(*time.Duration); ok {
		v, err := time.ParseDuration(value)
		if err != nil || v <= 0 {
			return fmt.Errorf("want a duration such as 60s")
		}
		*d = v
		return nil
	}
	most := math.MaxInt32
	if _, ok := field.(*uint16); ok {
		most = math.MaxUint16
	}
	v, err := strconv.Atoi(value)
	if err != nil || v < 1 || v > most {
		return fmt.Errorf("want a number from 1 to %d", most)
	}
	switch f := field.(type) {
	case *int:
		*f = v
	case *uint16:
		*f = uint16(v)
	}
	return nil
}
