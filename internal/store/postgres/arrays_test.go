package postgres

import (
	"bytes"
	"testing"

	"github.com/jackc/pgx/v5/pgtype"
	"pgregory.net/rapid"
)

// TestTextsAreSentAsPgxSendsThem: the bytes are those of its own codec.
func TestTextsAreSentAsPgxSendsThem(t *testing.T) {
	theirs, ours := pgtype.NewMap(), pgtype.NewMap()
	registerArrays(ours)
	rapid.Check(t, func(t *rapid.T) {
		list := rapid.SliceOf(rapid.String()).Draw(t, "list")
		if rapid.Bool().Draw(t, "none") {
			list = nil
		}
		before := rapid.SliceOfN(rapid.Byte(), 0, 9).Draw(t, "before")
		encode := func(m *pgtype.Map) []byte {
			b, err := m.Encode(pgtype.TextArrayOID, pgtype.BinaryFormatCode, list, bytes.Clone(before))
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
		if got, want := encode(ours), encode(theirs); !bytes.Equal(got, want) {
			t.Fatalf("%q\n got %x\nwant %x", list, got, want)
		}
	})
}
