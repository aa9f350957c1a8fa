package mqtt

import (
	"encoding/hex"
	"slices"
	"testing"

	"github.com/fxamacker/cbor/v2"
	"pgregory.net/rapid"
)

func unhex(t *testing.T, s string) string {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestStreamRequests(t *testing.T) {
	const size = 10_000 // 10 blocks of 1024, the last of 784
	for name, c := range map[string]struct {
		format, payload string
		want            []int64
		code            string
	}{
		"from the start":               {"json", `{"f":0,"l":1024}`, []int64{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}, ""},
		"n from an offset":             {"json", `{"f":0,"l":1024,"o":3,"n":2}`, []int64{3, 4}, ""},
		"the end":                      {"json", `{"f":0,"l":1024,"o":9,"n":9}`, []int64{9}, ""},
		"a bitmap":                     {"json", `{"f":0,"l":512,"b":"130020"}`, []int64{0, 1, 4}, ""}, // 21 is past the end
		"a bitmap of the last":         {"json", `{"f":0,"l":512,"b":"0x130008"}`, []int64{0, 1, 4, 19}, ""},
		"a bitmap and an offset":       {"json", `{"f":0,"l":1024,"o":2,"b":"0X05"}`, []int64{2, 4}, ""},
		"n before the bitmap's end":    {"json", `{"f":0,"l":1024,"n":2,"b":"ff"}`, []int64{0, 1}, ""},
		"of the embedded C library":    {"json", `{"s": 1,"f": 0,"l": 4096,"o": 1,"n": 1}`, []int64{1}, ""},
		"its CBOR: b is MQ==":          {"cbor", "a6" + "6163" + "63726479" + "6166" + "00" + "616c" + "191000" + "616f" + "02" + "616e" + "01" + "6162" + "444d513d3d", []int64{2}, ""},
		"CBOR of any length":           {"cbor", "bf" + "6166" + "00" + "616c" + "190400" + "ff", []int64{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}, ""},
		"unknown members":              {"json", `{"f":0,"l":8192,"x":[1]}`, []int64{0, 1}, ""},
		"no bitmap by null":            {"json", `{"f":0,"l":8192,"b":null}`, []int64{0, 1}, ""},
		"no JSON":                      {"json", `{"f":`, nil, "InvalidJson"},
		"no object":                    {"json", `[1]`, nil, "InvalidJson"},
		"no CBOR":                      {"cbor", "ff", nil, "InvalidCbor"},
		"CBOR and more":                {"cbor", "a000", nil, "InvalidCbor"},
		"a CBOR key twice":             {"cbor", "a2" + "616600" + "616601", nil, "InvalidCbor"},
		"deep CBOR":                    {"cbor", "a1" + "6178" + "818181818180", nil, "InvalidCbor"},
		"text for a number":            {"json", `{"f":"0","l":1024}`, nil, "InvalidRequest"},
		"text for a number in CBOR":    {"cbor", "a1" + "6166" + "6130", nil, "InvalidRequest"},
		"half a block":                 {"json", `{"f":0,"l":1024,"o":0.5}`, nil, "InvalidRequest"},
		"odd digits":                   {"json", `{"f":0,"l":1024,"b":"123"}`, nil, "InvalidRequest"},
		"no digits":                    {"json", `{"f":0,"l":1024,"b":"zz"}`, nil, "InvalidRequest"},
		"nothing":                      {"json", ``, nil, "InvalidRequest"},
		"no file":                      {"json", `{"l":1024}`, nil, "InvalidRequest"},
		"no block size":                {"json", `{"f":0}`, nil, "InvalidRequest"},
		"no block":                     {"json", `{"f":0,"l":1024,"b":"0000"}`, nil, "InvalidRequest"},
		"n of none":                    {"json", `{"f":0,"l":1024,"n":0}`, nil, "InvalidRequest"},
		"too long a token":             {"json", `{"c":"` + string(make64(65)) + `","f":0,"l":1024}`, nil, "InvalidRequest"},
		"too long a request":           {"json", `{"f":0,"l":1024,"x":"` + string(make64(MaxStreamRequest)) + `"}`, nil, "InvalidRequest"},
		"another version":              {"json", `{"s":2,"f":0,"l":1024}`, nil, "VersionMismatch"},
		"too small a block":            {"json", `{"f":0,"l":255}`, nil, "BlockSizeOutOfBounds"},
		"too large a block":            {"json", `{"f":0,"l":131073}`, nil, "BlockSizeOutOfBounds"},
		"an offset past the end":       {"json", `{"f":0,"l":1024,"o":10}`, nil, "OffsetOutOfBounds"},
		"an offset before the start":   {"json", `{"f":0,"l":1024,"o":-1}`, nil, "OffsetOutOfBounds"},
		"the largest offset":           {"json", `{"f":0,"l":1024,"o":9223372036854775807}`, nil, "OffsetOutOfBounds"},
		"a bitmap past the end":        {"json", `{"f":0,"l":1024,"o":9,"b":"f0"}`, nil, "OffsetOutOfBounds"},
		"too many blocks":              {"json", `{"f":0,"l":1024,"n":98305}`, nil, "BlockCountLimitExceeded"},
		"too long a bitmap":            {"json", `{"f":0,"l":256,"b":"` + string(make64(2*MaxStreamBitmap+2)) + `"}`, nil, "BlockBitmapLimitExceeded"},
		"the longest bitmap, all ones": {"json", `{"f":0,"l":8192,"b":"` + string(make64(2*MaxStreamBitmap)) + `"}`, []int64{1}, ""}, // "aa..": odd bits
	} {
		t.Run(name, func(t *testing.T) {
			payload := c.payload
			if c.format == "cbor" {
				payload = unhex(t, payload)
			}
			r, fault := decodeStream(wireFormats[c.format], []byte(payload))
			var got []int64
			if fault == nil {
				got, fault = r.blocks(size)
			}
			code := ""
			if fault != nil {
				code = fault.code
				if fault.message == "" {
					t.Error("no message")
				}
			}
			if code != c.code || !slices.Equal(got, c.want) {
				t.Fatalf("%v %v, want %v %q", got, fault, c.want, c.code)
			}
		})
	}
}

// make64 is n letters that are hexadecimal digits too.
func make64(n int) []byte {
	return slices.Repeat([]byte("a"), n)
}

func TestAnswerIsCapped(t *testing.T) {
	for l, want := range map[int64]int{256: MaxBlocksInFlight, 4096: 32, 100_000: 1, MaxStreamBlock: 1} {
		file := int64(0)
		list, fault := streamRequest{File: &file, BlockSize: &l}.blocks(1 << 36)
		if fault != nil || len(list) != want {
			t.Errorf("%d blocks of %d bytes, want %d: %v", len(list), l, want, fault)
		}
	}
}

// Whatever is asked: ascending blocks inside the file, each one wanted, no more
// than n and than the cap, and none left out that there was room for.
func TestBlocksAreThoseWanted(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.Int64Range(1, 1<<20).Draw(t, "size")
		l := rapid.Int64Range(MinStreamBlock, 8<<10).Draw(t, "l")
		file := int64(0)
		r := streamRequest{File: &file, BlockSize: &l, Offset: rapid.Int64Range(0, 100).Draw(t, "o")}
		most := MaxStreamAnswer / l
		if rapid.Bool().Draw(t, "counted") {
			n := rapid.Int64Range(1, 200).Draw(t, "n")
			r.Count, most = &n, min(most, n)
		}
		if rapid.Bool().Draw(t, "mapped") {
			r.Bitmap = rapid.SliceOfN(rapid.Byte(), 1, 40).Draw(t, "b")
		}
		var want []int64
		for i := r.Offset; i*l < size && int64(len(want)) < most; i++ {
			k := i - r.Offset
			if r.Bitmap == nil || k < int64(8*len(r.Bitmap)) && r.Bitmap[k/8]&(1<<(k%8)) != 0 {
				want = append(want, i)
			}
		}
		got, fault := r.blocks(size)
		if !slices.Equal(got, want) || (fault != nil) != (len(want) == 0) {
			t.Fatalf("%v (%v), want %v", got, fault, want)
		}
	})
}

func FuzzStreamRequest(f *testing.F) {
	f.Add(false, []byte(`{"c":"t","s":1,"f":0,"l":256,"o":1,"n":2,"b":"0x130080"}`))
	seed, err := cbor.Marshal(map[string]any{"c": "rdy", "f": 0, "l": 4096, "o": 0, "n": 1, "b": []byte("MQ==")})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(true, seed)
	f.Fuzz(func(t *testing.T, isCBOR bool, payload []byte) {
		format := wireFormats["json"]
		if isCBOR {
			format = wireFormats["cbor"]
		}
		r, fault := decodeStream(format, payload)
		if len(r.ClientToken) > maxClientToken {
			t.Fatal("a long client token would be answered")
		}
		if fault != nil {
			return
		}
		const size = 1 << 20
		list, fault := r.blocks(size)
		if (fault == nil) == (len(list) == 0) {
			t.Fatalf("%d blocks, fault %v", len(list), fault)
		}
		if fault != nil {
			return
		}
		if int64(len(list))**r.BlockSize > MaxStreamAnswer || list[0] < r.Offset || list[len(list)-1]**r.BlockSize >= size || !slices.IsSorted(list) {
			t.Fatalf("blocks %v of %d bytes from %d", list, *r.BlockSize, r.Offset)
		}
	})
}

// What is wrong with a payload is said in words of the protocol, not of this program.
func TestWrongTypesInWords(t *testing.T) {
	encoded := func(v any) string {
		b, err := cbor.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	for _, c := range []struct {
		format, payload, want string
		to                    any
	}{
		{"json", `{"f":"x"}`, "a member has the wrong type: f can not be of the type string", new(streamRequest)},
		{"json", `{"f":1.5}`, "a member has the wrong type: f can not be of the type number 1.5", new(streamRequest)},
		{"json", `{"b":1}`, "a member has the wrong type: b is not whole bytes in hexadecimal", new(streamRequest)},
		{"json", `{"b":"0g"}`, "a member has the wrong type: b is not whole bytes in hexadecimal", new(streamRequest)},
		{"json", `[]`, "the payload can not be of the type array", new(streamRequest)},
		{"json", `{"parameters":{"k":1}}`, "a member has the wrong type: parameters can not be of the type number", new(provisionRequest)},
		{"json", `{"events":[{"seq":"x"}]}`, "a member has the wrong type: events.seq can not be of the type string", new(eventBatch)},
		{"cbor", encoded(map[string]any{"f": "x"}), "a member has the wrong type: f can not be of the type UTF-8 text string", new(streamRequest)},
		{"cbor", encoded([]int{}), "the payload can not be of the type array", new(streamRequest)},
	} {
		if err := wireFormats[c.format].read([]byte(c.payload), c.to); err == nil || err.Error() != c.want {
			t.Errorf("%s %q: %v, want %s", c.format, c.payload, err, c.want)
		}
	}
}
