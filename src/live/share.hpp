// src/live/share.hpp
//
// How the processes of a run share its RAM: the arithmetic, without anything that happens.
//
//   frames held by processes + frames left = total
//
//   alone                              everything
//   short of memory                    takes what is left; then the others are asked (SharedRun::bell)
//   another is short                   gives what is free; what is more than an equal share, half at a time; at rest,
//                                      more
//   another would be killed (dying)    gives whatever it can work without
//   fork                               the child's copy needs frames for what is in use; what is left and what the
//                                      parent has free goes first, the rest is a debt: left < 0. Both shrink when the
//                                      child stays
//
// Counts are frames of 4096 bytes.
#pragma once

#include <algorithm>
#include <cstdint>

namespace weir::live {

/// What a process does its work in, beside what cannot leave it: below, it would only carry pages in and out.
inline constexpr int64_t WORK_FRAMES = (4 << 20) / 4096;
/// Free frames that a process keeps when it gives; less than the kernel's low mark for a machine of this size wakes
/// kswapd.
inline constexpr int64_t RESERVE_FRAMES = (1 << 20) / 4096;

enum class Need : uint32_t {
  none,
  more,   ///< it swaps, or starts
  dying,  ///< without more it is killed, or does not start
};

/// A process's share as it sees it.
struct ShareView {
  int64_t total = 0;         ///< the run's budget
  int64_t left = 0;          ///< of it, nobody's; below zero: a debt
  int64_t mine = 0;          ///< this process's
  int64_t free = 0;          ///< of it, frames that hold nothing
  int64_t fixed = 0;         ///< of it, what reclaim cannot move: tables, pool, locked pages
  int64_t pool = 0;          ///< of `fixed`, zram's pool
  int64_t living = 1;        ///< managed processes, this one too
  Need others = Need::none;  ///< the most urgent one of the others
  Need own = Need::none;
  bool swaps = false;  ///< pages went out since the last look
  bool rests = false;  ///< no fault for a while
  bool grace = false;  ///< forked a moment ago: most children exec or end
};

struct ShareMove {
  int64_t goal = 0;        ///< what the share should be; above `mine`: as far as frames are left
  Need need = Need::none;  ///< what to tell the others
};

[[nodiscard]] constexpr int64_t share_fair(const ShareView& v) { return v.total / std::max<int64_t>(v.living, 1); }

/// The least that a process can do with. What reclaim cannot move stays; a process that works needs room for what it
/// works on, and more the more it carries to zram and back.
[[nodiscard]] constexpr int64_t share_floor(const ShareView& v, Need need) {
  int64_t room = v.rests ? RESERVE_FRAMES + v.pool / 4 : WORK_FRAMES + v.pool / 4;
  if (need == Need::dying && !v.rests) room = WORK_FRAMES / 2 + v.pool / 8;
  return std::min(v.mine, v.fixed + room);
}

/// Free frames that it does not need to keep.
[[nodiscard]] constexpr int64_t share_idle(const ShareView& v, Need need) {
  return std::clamp<int64_t>(v.free - std::max(RESERVE_FRAMES, v.mine / 16), 0, v.mine - share_floor(v, need));
}

/// What it could give without others having to die for it.
[[nodiscard]] constexpr int64_t share_can_give(const ShareView& v) {
  const int64_t floor = share_floor(v, Need::more);
  return std::max(share_idle(v, Need::more), v.mine - (v.rests ? floor : std::max(share_fair(v), floor)));
}

[[nodiscard]] constexpr ShareMove next_share(const ShareView& v) {
  const Need need = v.left < 0 ? std::max(v.others, Need::more) : v.others;
  const int64_t floor = share_floor(v, need), idle = share_idle(v, need);
  const int64_t beyond_fair = std::max<int64_t>(0, v.mine - idle - std::max(share_fair(v), floor));
  const int64_t beyond_floor = v.mine - idle - floor;
  // Frames that hold something move slowly: it costs swapping.
  const auto part = [](int64_t n, int64_t of) { return std::min(n, std::max(n / of, RESERVE_FRAMES)); };

  if (v.left < 0) {
    int64_t give = idle;
    if (!v.grace) {
      give += beyond_fair;
      if (beyond_fair == 0) give += part(beyond_floor, v.rests ? 2 : 8);
    }
    return {.goal = v.mine - std::min(give, -v.left), .need = v.own == Need::dying ? v.own : Need::none};
  }
  if (v.others != Need::none && v.own != Need::dying) {
    int64_t give = idle + part(beyond_fair, 2);
    if (v.rests) give = std::max(give, idle + part(beyond_floor, 4));
    if (v.others == Need::dying) give = std::max(give, idle + part(beyond_floor, 2));
    if (give > 0) return {.goal = v.mine - give, .need = Need::none};
  }
  if (v.own == Need::dying) return {.goal = v.mine, .need = Need::dying};
  const bool is_short = v.swaps && v.free < std::max(RESERVE_FRAMES, v.mine / 8) && v.mine < v.total;
  // Two that are short do not take from each other what the third gave to one of them.
  if (is_short && (v.others == Need::none || v.mine < share_fair(v)))
    return {.goal = std::min(v.total, v.mine + std::max(v.mine / 2, WORK_FRAMES)), .need = Need::more};
  return {.goal = v.mine, .need = Need::none};
}

/// How a fork is paid for.
struct ForkShares {
  int64_t child = 0;        ///< the child's share: what is in use, and a reserve
  int64_t from_left = 0;    ///< of it, from what is left
  int64_t from_parent = 0;  ///< of it, of the parent's free frames
  int64_t debt = 0;         ///< of it, from nowhere
};

[[nodiscard]] constexpr ForkShares fork_shares(int64_t left, int64_t mine, int64_t free) {
  ForkShares f;
  f.child = std::min(mine, mine - free + RESERVE_FRAMES);
  f.from_left = std::clamp<int64_t>(left, 0, f.child);
  f.from_parent = std::min(f.child - f.from_left, std::max<int64_t>(0, free - RESERVE_FRAMES));
  f.debt = f.child - f.from_left - f.from_parent;
  return f;
}

}  // namespace weir::live
