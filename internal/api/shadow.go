package api

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"connectrpc.com/connect"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/shadow"
	otadv1 "github.com/otad/otad/proto/otad/v1"
)

type shadowHandler struct{ *server }

func (h shadowHandler) GetShadow(ctx context.Context, r *connect.Request[otadv1.GetShadowRequest]) (*connect.Response[otadv1.GetShadowResponse], error) {
	d, err := h.fleet.Shadow(ctx, r.Msg.GetDeviceId(), r.Msg.GetName())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&otadv1.GetShadowResponse{Document: d.GetAccepted("", h.fleet.Now())}), nil
}

func (h shadowHandler) UpdateShadow(ctx context.Context, r *connect.Request[otadv1.UpdateShadowRequest]) (*connect.Response[otadv1.UpdateShadowResponse], error) {
	u, err := shadow.ParseUpdate(r.Msg.GetUpdate())
	if err != nil {
		return nil, err
	}
	res, err := h.fleet.ChangeShadow(ctx, r.Msg.GetDeviceId(), r.Msg.GetName(), u)
	if errors.Is(err, shadow.ErrTooLarge) { // devices get the protocol's text, people the remedy too
		return nil, fmt.Errorf("%w: desired and reported together may take at most %d bytes of compact JSON; the server's --shadow-bytes raises it",
			err, cmp.Or(h.fleet.MaxShadowBytes, shadow.MaxStateBytes))
	}
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&otadv1.UpdateShadowResponse{Document: res.Document.GetAccepted("", h.fleet.Now())}), nil
}

func (h shadowHandler) QueryShadows(ctx context.Context, r *connect.Request[otadv1.QueryShadowsRequest]) (*connect.Response[otadv1.QueryShadowsResponse], error) {
	paths, err := fleet.ParseShadowPaths(r.Msg.GetPaths())
	if err != nil {
		return nil, err
	}
	limit, after, err := pageAfter(r.Msg.GetPageSize(), r.Msg.GetPageToken())
	if err != nil {
		return nil, err
	}
	page, more, err := h.fleet.Devices(ctx, r.Msg.GetSelector(), after, limit)
	if err != nil {
		return nil, err
	}
	out := &otadv1.QueryShadowsResponse{}
	for _, d := range page {
		out.Rows = append(out.Rows, &otadv1.ShadowRow{DeviceId: d.ID, Version: d.Shadow.Version, Values: paths.Values(d.DeviceView)})
	}
	if more {
		out.NextPageToken = encodePageToken(page[len(page)-1].ID)
	}
	return connect.NewResponse(out), nil
}

func (h shadowHandler) WatchShadow(ctx context.Context, r *connect.Request[otadv1.WatchShadowRequest], stream *connect.ServerStream[otadv1.WatchShadowResponse]) error {
	device, name := r.Msg.GetDeviceId(), r.Msg.GetName()
	changed, stop := h.fleet.WatchShadow(device, name)
	defer stop()
	last := int64(-1)
	return watch(ctx, changed, func() (bool, error) {
		d, err := h.fleet.Shadow(ctx, device, name)
		if err != nil {
			return false, err
		}
		if d.Version == last {
			return false, nil
		}
		last = d.Version
		return false, stream.Send(&otadv1.WatchShadowResponse{Document: json.RawMessage(d.GetAccepted("", h.fleet.Now()))})
	})
}
