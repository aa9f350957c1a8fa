package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"connectrpc.com/connect"

	"github.com/otad/otad/internal/blob"
	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
	otadv1 "github.com/otad/otad/proto/otad/v1"
)

// decodeCommand reads a command; what is in it is judged by ota.
func decodeCommand(c *otadv1.Command) (*ota.Command, error) {
	d := c.GetTimeout().AsDuration()
	if d%time.Second != 0 {
		return nil, fmt.Errorf("%w: command timeout of %s: want whole seconds", fleet.ErrInvalid, d)
	}
	return &ota.Command{
		Name: c.GetName(), Parameters: c.GetParameters(), TimeoutSeconds: int(d / time.Second), MaxOutputBytes: int(c.GetMaxOutput()),
	}, nil
}

func encodeCommand(c ota.Command) *otadv1.Command {
	return &otadv1.Command{
		Name: c.Name, Parameters: c.Parameters, Timeout: duration(time.Duration(c.TimeoutSeconds) * time.Second), MaxOutput: int32(c.MaxOutputBytes),
	}
}

type commandHandler struct{ *server }

func (h commandHandler) ListUploads(ctx context.Context, r *connect.Request[otadv1.ListUploadsRequest]) (*connect.Response[otadv1.ListUploadsResponse], error) {
	limit, err := pageSize(r.Msg.GetPageSize())
	if err != nil {
		return nil, err
	}
	filter := fleet.UploadFilter{RolloutID: r.Msg.GetRolloutId(), DeviceID: r.Msg.GetDeviceId()}
	after, err := decodePageToken(r.Msg.GetPageToken(), 3)
	if err != nil {
		return nil, err
	}
	filter.After.RolloutID, filter.After.DeviceID = after[0], after[1]
	if after[2] != "" {
		if filter.After.Attempt, err = strconv.Atoi(after[2]); err != nil {
			return nil, fmt.Errorf("%w: page token %.40q is not one that a list call returned", fleet.ErrInvalid, r.Msg.GetPageToken())
		}
	}
	page, more, err := h.fleet.UploadPage(ctx, filter, limit)
	if err != nil {
		return nil, err
	}
	out := &otadv1.ListUploadsResponse{}
	for _, u := range page {
		out.Uploads = append(out.Uploads, &otadv1.Upload{
			RolloutId: u.RolloutID, DeviceId: u.DeviceID, Attempt: int32(u.Attempt), Bytes: u.Bytes, UploadedAt: timestamp(u.At),
		})
	}
	if more {
		last := page[len(page)-1]
		out.NextPageToken = encodePageToken(last.RolloutID, last.DeviceID, strconv.Itoa(last.Attempt))
	}
	return connect.NewResponse(out), nil
}

// downloadPiece is how many bytes of an upload go into one message.
const downloadPiece = 256 << 10

func (h commandHandler) DownloadUpload(ctx context.Context, r *connect.Request[otadv1.DownloadUploadRequest], stream *connect.ServerStream[otadv1.DownloadUploadResponse]) error {
	_, body, err := h.fleet.Upload(ctx, r.Msg.GetRolloutId(), r.Msg.GetDeviceId(), int(r.Msg.GetAttempt()))
	if errors.Is(err, blob.ErrNotFound) {
		return fmt.Errorf("%w: device %s brought nothing for attempt %d of %s", fleet.ErrNotFound, r.Msg.GetDeviceId(), r.Msg.GetAttempt(), r.Msg.GetRolloutId())
	}
	if err != nil {
		return err
	}
	defer func() { _ = body.Close() }() // only read
	piece := make([]byte, downloadPiece)
	for {
		n, err := io.ReadFull(body, piece)
		if n > 0 {
			if err := stream.Send(&otadv1.DownloadUploadResponse{Data: piece[:n]}); err != nil {
				return err
			}
		}
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return nil
		case err != nil:
			return err
		}
	}
}
