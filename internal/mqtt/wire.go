package mqtt

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/fxamacker/cbor/v2"
)

// wireFormat is one of the two encodings of streams and provisioning; the last
// level of a topic names it. Structs carry json tags for both.
type wireFormat struct {
	name string
	// read fails with errType when the payload is of the format and a member is of
	// another type.
	read   func(payload []byte, to any) error
	encode func(any) ([]byte, error)
}

var wireFormats = map[string]wireFormat{
	"json": {name: "json", read: readJSON, encode: json.Marshal},
	"cbor": {name: "cbor", read: readCBOR, encode: cbor.Marshal},
}

// errType: the payload can be read, but a member has the wrong type.
var errType = errors.New("a member has the wrong type")

func readJSON(payload []byte, to any) error {
	err := json.Unmarshal(payload, to)
	var wrong *json.UnmarshalTypeError
	switch {
	case errors.Is(err, errBitmap):
		return fmt.Errorf("%w: %w", errType, err)
	case errors.As(err, &wrong):
		return mismatch(wrong.Field, wrong.Value)
	}
	return err
}

// mismatch says so of a value that can not be where it is; member is empty for the
// whole payload. What we hold it in is no concern of a device.
func mismatch(member, value string) error {
	if member == "" {
		return fmt.Errorf("the payload can not be of the type %s", value)
	}
	return fmt.Errorf("%w: %s can not be of the type %s", errType, member, value)
}

// strictCBOR reads what RFC 8949 allows and a small device sends: one map with
// text keys, no key twice, nothing after it.
var strictCBOR = func() cbor.DecMode {
	m, err := cbor.DecOptions{
		DupMapKey: cbor.DupMapKeyEnforcedAPF, MaxNestedLevels: 4, MaxArrayElements: 16, MaxMapPairs: 32,
		TagsMd: cbor.TagsForbidden, FieldNameMatching: cbor.FieldNameMatchingCaseSensitive,
	}.DecMode()
	if err != nil {
		panic(err) // only for options outside their ranges, and these are constants
	}
	return m
}()

func readCBOR(payload []byte, to any) error {
	err := strictCBOR.Unmarshal(payload, to)
	var wrong *cbor.UnmarshalTypeError
	if errors.As(err, &wrong) {
		return mismatch(wrong.StructFieldName[strings.LastIndexByte(wrong.StructFieldName, '.')+1:], wrong.CBORType)
	}
	return err
}
