package postgres

import (
	"context"
	"encoding/binary"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

// textArray sends a list of texts, as the writer's batches hold their documents. The
// codec of pgx, which reads them, grows its buffer from 256 bytes for each statement
// anew and goes by reflection, which cost a tenth of an update's memory.
type textArray struct{ *pgtype.ArrayCodec }

// sendArrays has a connection use it.
func sendArrays(_ context.Context, c *pgx.Conn) error {
	registerArrays(c.TypeMap())
	return nil
}

func registerArrays(m *pgtype.Map) {
	if text, ok := m.TypeForOID(pgtype.TextOID); ok {
		m.RegisterType(&pgtype.Type{Name: "_text", OID: pgtype.TextArrayOID, Codec: textArray{&pgtype.ArrayCodec{ElementType: text}}})
	}
}

// PlanEncode implements pgtype.Codec.
func (t textArray) PlanEncode(m *pgtype.Map, oid uint32, format int16, value any) pgtype.EncodePlan {
	if _, ok := value.([]string); ok && format == pgtype.BinaryFormatCode {
		return encodeTexts{}
	}
	return t.ArrayCodec.PlanEncode(m, oid, format, value)
}

type encodeTexts struct{}

// Encode implements pgtype.EncodePlan, in the binary format of array_recv: number of
// dimensions, whether there are NULLs, type; then length and lower bound of the
// dimension, and of each element the length and the bytes.
func (encodeTexts) Encode(value any, buf []byte) ([]byte, error) {
	list := value.([]string)
	if list == nil {
		return nil, nil
	}
	size := 20 + 4*len(list)
	for _, s := range list {
		size += len(s)
	}
	buf = slices.Grow(buf, size)
	number := func(n int) { buf = binary.BigEndian.AppendUint32(buf, uint32(n)) }
	for _, n := range []int{1, 0, pgtype.TextOID, len(list), 1} {
		number(n)
	}
	for _, s := range list {
		number(len(s))
		buf = append(buf, s...)
	}
	return buf, nil
}
