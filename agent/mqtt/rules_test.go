package mqtt

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/eclipse/paho.golang/packets"
	"pgregory.net/rapid"

	"github.com/otad/otad/pkg/ota"
)

func TestParseNext(t *testing.T) {
	for payload, want := range map[string]string{
		`{}`:                 "none",
		`{"execution":null}`: "none",
		`{"execution":{}}`:   "none",
		`{"execution":{"jobId":"a","status":"QUEUED","executionNumber":1}}`:                               "job",
		`{"execution":{"jobId":"a","status":"QUEUED","executionNumber":1,"jobDocument":"text"}}`:          "job",
		`{"execution":{"jobId":"a","status":"QUEUED","executionNumber":1,"jobDocument":{"operation":5}}}`: "job",
		`{"execution":{"jobId":"a","status":"QUEUED","executionNumber":1,"thingName":"gw-2"}}`:            "error",
		`{"execution":{"jobId":"a/b","status":"QUEUED","executionNumber":1}}`:                             "error",
		`{"execution":{"jobId":"+","status":"QUEUED","executionNumber":1}}`:                               "error",
		`{"execution":{"jobId":"` + strings.Repeat("a", 65) + `","status":"QUEUED","executionNumber":1}}`: "error",
		`{"execution":{"jobId":"a","status":"SUCCEEDED","executionNumber":1}}`:                            "error",
		`{"execution":{"jobId":"a","status":"QUEUED","executionNumber":0}}`:                               "error",
		`{"execution":{"jobId":"a","status":"QUEUED","executionNumber":-1}}`:                              "error",
		`{"execution":{"jobId":"a","status":"QUEUED","executionNumber":99999999999999999999}}`:            "error",
		`{"execution":[]}`: "error",
		``:                 "error",
	} {
		job, ok, err := parseNext([]byte(payload), deviceID)
		got := "none"
		if ok {
			got = "job"
		}
		if err != nil {
			got = "error"
			if !errors.Is(err, ErrReply) {
				t.Errorf("%s: %v", payload, err)
			}
		}
		if got != want {
			t.Errorf("%s: %s %+v, want %s", payload, got, job, want)
		}
		if strings.Contains(payload, "jobDocument") && job.Document != (ota.JobDocument{}) {
			t.Errorf("%s: document %+v", payload, job.Document)
		}
	}
}

func FuzzParseNext(f *testing.F) {
	f.Add([]byte(`{"execution":{"jobId":"a","status":"QUEUED","executionNumber":1,"jobDocument":{"operation":"install"}}}`))
	f.Add([]byte(`{"execution":{"jobId":"../x"}}`))
	f.Fuzz(func(t *testing.T, payload []byte) {
		job, ok, err := parseNext(payload, deviceID)
		if err == nil && ok && (!jobPattern.MatchString(job.ID) || job.Attempt < 1 || job.Status.Terminal()) {
			t.Fatalf("%+v", job)
		}
	})
}

func TestClip(t *testing.T) {
	in := map[string]string{"reason": strings.Repeat("é", 2000), "short": "x", "raw": strings.Repeat("\xff", 2000)}
	for i := range 20 {
		in[fmt.Sprintf("k%02d", i)] = "v"
	}
	out := clip(in)
	if len(out) != ota.MaxDetails {
		t.Errorf("%d entries", len(out))
	}
	out = clip(map[string]string{"reason": in["reason"], "raw": in["raw"], "short": "x"})
	if r := out["reason"]; len(r) > ota.MaxDetailValueBytes || len(r) < ota.MaxDetailValueBytes-1 || !utf8.ValidString(r) {
		t.Errorf("reason has %d bytes, valid: %v", len(r), utf8.ValidString(r))
	}
	if len(out["raw"]) > ota.MaxDetailValueBytes || out["short"] != "x" {
		t.Errorf("%v", out)
	}
}

// feed is a connection that reads from memory in pieces.
type feed struct {
	net.Conn
	r    *bytes.Reader
	most int
}

func (f *feed) Read(p []byte) (int, error) { return f.r.Read(p[:min(len(p), f.most)]) }

func TestPacketsUpToTheLimitPass(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var wire bytes.Buffer
		sizes := rapid.SliceOfN(rapid.SampledFrom([]int{0, 1, 100, 127, 128, 16383, 16384, MaxPayload}), 1, 5).Draw(t, "sizes")
		for _, n := range sizes {
			p := &packets.Publish{Topic: "a/b", Payload: make([]byte, n), Properties: &packets.Properties{}}
			if _, err := p.WriteTo(&wire); err != nil {
				t.Fatal(err)
			}
		}
		c := newLimitConn(&feed{r: bytes.NewReader(wire.Bytes()), most: rapid.IntRange(1, 5000).Draw(t, "most")})
		for _, n := range sizes {
			p, err := packets.ReadPacket(c)
			if err != nil {
				t.Fatal(err)
			}
			if got := len(p.Content.(*packets.Publish).Payload); got != n {
				t.Fatalf("payload of %d bytes, want %d", got, n)
			}
		}
	})
}

func TestPacketsOverTheLimitCutTheLine(t *testing.T) {
	for name, wire := range map[string][]byte{
		"one byte over":     {0x30, 0x81, 0x80 | (maxPacket >> 7 & 0x7f), maxPacket >> 14},
		"256 MiB":           {0x30, 0xff, 0xff, 0xff, 0x7f},
		"five length bytes": {0x30, 0x80, 0x80, 0x80, 0x80, 0x01},
		"after a good one":  {0xd0, 0x00, 0x30, 0xff, 0xff, 0xff, 0x7f},
	} {
		for most := 1; most <= len(wire); most++ {
			c := newLimitConn(&feed{r: bytes.NewReader(wire), most: most})
			var err error
			for buf := make([]byte, 16); err == nil; {
				_, err = c.Read(buf)
			}
			if !errors.Is(err, errPacket) {
				t.Errorf("%s, %d at a time: %v", name, most, err)
			}
		}
	}
}

func FuzzScan(f *testing.F) {
	f.Add([]byte{0x30, 0x02, 'a', 'b', 0xd0, 0x00}, uint8(1))
	f.Add([]byte{0x30, 0xff, 0xff, 0xff, 0x7f}, uint8(2))
	f.Add([]byte{0x30, 0xff, 0xff, 0x30, 0xd0, 0x00}, uint8(0))
	f.Fuzz(func(t *testing.T, wire []byte, most uint8) {
		whole, pieces := newLimitConn(nil), newLimitConn(nil)
		errWhole := whole.scan(wire)
		var errPieces error
		for rest := wire; len(rest) > 0 && errPieces == nil; {
			n := min(int(most)+1, len(rest))
			errPieces = pieces.scan(rest[:n])
			rest = rest[n:]
		}
		if (errWhole == nil) != (errPieces == nil) {
			t.Fatalf("whole: %v, in pieces: %v", errWhole, errPieces)
		}
		if whole.left > maxPacket {
			t.Fatalf("accepted a packet of %d bytes", whole.left)
		}
	})
}

func TestFullJitter(t *testing.T) {
	wait := FullJitter(time.Second, time.Minute)
	for attempt, widest := range map[int]time.Duration{0: time.Second, 1: 2 * time.Second, 5: 32 * time.Second, 6: time.Minute, 1000000: time.Minute} {
		longest := time.Duration(0)
		for range 200 {
			d := wait(attempt)
			if d < 0 || d >= widest {
				t.Fatalf("attempt %d waits %s", attempt, d)
			}
			longest = max(longest, d)
		}
		if longest < widest/2 {
			t.Errorf("attempt %d: 200 waits within %s of a window of %s", attempt, longest, widest)
		}
	}
}
