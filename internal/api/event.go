package api

import (
	"context"

	"connectrpc.com/connect"

	"github.com/otad/otad/internal/fleet"
	otadv1 "github.com/otad/otad/proto/otad/v1"
)

type eventHandler struct{ *server }

func (h eventHandler) ListEvents(ctx context.Context, r *connect.Request[otadv1.ListEventsRequest]) (*connect.Response[otadv1.ListEventsResponse], error) {
	limit, err := pageSize(r.Msg.GetPageSize())
	if err != nil {
		return nil, err
	}
	events, err := h.fleet.Feed(ctx, fleet.FeedFilter{RolloutID: r.Msg.GetRolloutId(), DeviceID: r.Msg.GetDeviceId()}, r.Msg.GetAfter(), limit)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&otadv1.ListEventsResponse{Events: encodeEvents(events)}), nil
}

// eventsSent is how many events go into one message of a stream.
const eventsSent = 500

func (h eventHandler) WatchEvents(ctx context.Context, r *connect.Request[otadv1.WatchEventsRequest], stream *connect.ServerStream[otadv1.WatchEventsResponse]) error {
	changed, stop := h.fleet.WatchFeed()
	defer stop()
	after := r.Msg.GetAfter()
	if r.Msg.After == nil {
		var err error
		if after, err = h.fleet.FeedEnd(ctx); err != nil {
			return err
		}
	}
	if err := stream.Send(&otadv1.WatchEventsResponse{After: after}); err != nil {
		return err
	}
	filter := fleet.FeedFilter{RolloutID: r.Msg.GetRolloutId(), DeviceID: r.Msg.GetDeviceId()}
	return watch(ctx, changed, func() (bool, error) {
		for {
			events, err := h.fleet.Feed(ctx, filter, after, eventsSent)
			if err != nil || len(events) == 0 {
				return false, err
			}
			after = events[len(events)-1].Seq
			if err := stream.Send(&otadv1.WatchEventsResponse{Events: encodeEvents(events), After: after}); err != nil {
				return false, err
			}
		}
	})
}

func encodeEvents(events []fleet.RolloutEvent) []*otadv1.RolloutEvent {
	out := make([]*otadv1.RolloutEvent, len(events))
	for i, e := range events {
		out[i] = &otadv1.RolloutEvent{
			Seq: e.Seq, At: timestamp(e.At), RolloutId: e.RolloutID, Kind: string(e.Kind), Stage: int32(e.Stage), DeviceId: e.DeviceID, Attempt: int32(e.Attempt),
			From: e.From, To: e.To, Class: string(e.Class), Count: int32(e.Count), Reason: e.Reason, Release: e.Release.String(),
		}
	}
	return out
}
