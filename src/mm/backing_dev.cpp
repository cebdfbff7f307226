// src/mm/backing_dev.cpp: see backing_dev.hpp
#include "mm/backing_dev.hpp"

#include <algorithm>
#include <bit>

namespace weir {

namespace {

constexpr int64_t ONE = int64_t{1} << RATELIMIT_CALC_SHIFT;
constexpr uint64_t SECOND = 1'000'000'000;
/// Time over which bandwidth is averaged.
constexpr Nanos PERIOD = 4_s;

int64_t a_second(uint64_t pages, Nanos time) {
  return static_cast<int64_t>(static_cast<unsigned __int128>(pages) * SECOND / std::max<uint64_t>(time.v, 1));
}

}  // namespace

int64_t pos_ratio_polynom(int64_t setpoint, int64_t dirty, int64_t limit) {
  const int64_t x = (setpoint - dirty) * ONE / (limit - setpoint + 1);
  const int64_t cube = x * x / ONE * x / ONE;
  return std::clamp<int64_t>(cube + ONE, 0, 2 * ONE);
}

int64_t wb_position_ratio(const DirtyControl& c) {
  if (c.dirty >= c.thresh) return 0;
  const int64_t limit = c.thresh, setpoint = (c.freerun() + limit) / 2;
  int64_t ratio = pos_ratio_polynom(setpoint, c.dirty, limit);
  if (c.strict) {
    // With less than this a device cannot be kept busy.
    if (c.wb_dirty < 8) return 2 * ONE;
    if (c.wb_dirty >= c.wb_thresh) return 0;
    return std::min(ratio, pos_ratio_polynom((c.wb_freerun() + c.wb_thresh) / 2, c.wb_dirty, c.wb_thresh));
  }

  // A device that has shown nothing yet may begin.
  const int64_t wb_thresh = std::max(std::min(c.wb_thresh, c.thresh), (limit - c.dirty) / 8);
  // A line through 1 at the device's own setpoint. Its slope: a share of the bandwidth for a small device, of the room
  // there is for one that has all of it.
  const int64_t x = (wb_thresh << 16) / (c.thresh + 1);
  const int64_t wb_setpoint = setpoint * x >> 16;
  const int64_t span = std::max<int64_t>((c.thresh - wb_thresh + 8 * c.write_bw) * x >> 16, 1);
  const int64_t intercept = wb_setpoint + span;
  if (c.wb_dirty < intercept - span / 4)
    ratio = ratio * (intercept - c.wb_dirty) / (intercept - wb_setpoint + 1);
  else
    ratio /= 4;
  // It must not run dry because others are slow.
  const int64_t low = wb_thresh / 2;
  if (c.wb_dirty < low) ratio = c.wb_dirty > low / 8 ? ratio * low / c.wb_dirty : ratio * 8;
  return ratio;
}

void BdiWriteback::update_write_bandwidth(uint64_t written_now, Nanos elapsed) {
  const uint64_t done = written_now - std::min(written_now, written_stamp);
  int64_t bw, avg = avg_write_bandwidth;
  if (elapsed > PERIOD) {
    avg = bw = a_second(done, elapsed);
  } else {
    const auto old_part = static_cast<unsigned __int128>(write_bandwidth) * (PERIOD - elapsed).v;
    bw = static_cast<int64_t>((static_cast<unsigned __int128>(done) * SECOND + old_part) / PERIOD.v);
    // Smoothed once more, but not against the trend.
    if (avg > write_bandwidth && write_bandwidth >= bw) avg -= (avg - write_bandwidth) / 8;
    if (avg < write_bandwidth && write_bandwidth <= bw) avg += (write_bandwidth - avg) / 8;
  }
  write_bandwidth = std::max<int64_t>(bw, 1);
  avg_write_bandwidth = std::max<int64_t>(avg, 1);
}

void BdiWriteback::update_dirty_ratelimit(const DirtyControl& c, uint64_t dirtied_now, Nanos elapsed) {
  const int64_t ratelimit = dirty_ratelimit.load(std::memory_order_relaxed);
  const int64_t dirty_rate = a_second(dirtied_now - dirtied_stamp, elapsed);
  const int64_t task_ratelimit = (ratelimit * c.pos_ratio >> RATELIMIT_CALC_SHIFT) + 1;
  const int64_t balanced = std::min(static_cast<int64_t>(static_cast<__int128>(task_ratelimit) * avg_write_bandwidth /
                                                         std::max<int64_t>(dirty_rate, 1)),
                                    avg_write_bandwidth);
  // Only as far as three estimates agree, and in steps that grow with the distance: any one of them swings.
  int64_t step = 0;
  const int64_t setpoint = (c.freerun() + c.thresh) / 2;
  if (c.dirty < setpoint) {
    const int64_t x = std::min({balanced_dirty_ratelimit, balanced, task_ratelimit});
    if (ratelimit < x) step = x - ratelimit;
  } else {
    const int64_t x = std::max({balanced_dirty_ratelimit, balanced, task_ratelimit});
    if (ratelimit > x) step = ratelimit - x;
  }
  const int64_t shift = ratelimit / (2 * step + 1);
  step = shift < 64 ? ((step >> shift) + 7) / 8 : 0;
  dirty_ratelimit.store(std::max<int64_t>(ratelimit < balanced ? ratelimit + step : ratelimit - step, 1),
                        std::memory_order_relaxed);
  balanced_dirty_ratelimit = balanced;
}

void BdiWriteback::update_bandwidth(const DirtyControl& control, Nanos start, Nanos now) {
  const Nanos elapsed = now - bw_time_stamp;
  if (elapsed < BANDWIDTH_INTERVAL) return;
  const uint64_t dirtied_now = dirtied.load(std::memory_order_relaxed);
  const uint64_t written_now = written.load(std::memory_order_relaxed);
  completions += written_now - written_stamp;
  // A time without work says nothing of the device.
  if (!(elapsed > 1_s && bw_time_stamp < start)) {
    update_dirty_ratelimit(control, dirtied_now, elapsed);
    update_write_bandwidth(written_now, elapsed);
  }
  dirtied_stamp = dirtied_now;
  written_stamp = written_now;
  bw_time_stamp = now;
}

}  // namespace weir
