// tests/support/machine_look.hpp
//
// What a machine is at one moment, in the words of its recording, and the same told by the recording's events: what the
// explorer's page draws. Two ways to one value; where they differ the recording is not exact.
//
//   Look look = look_at(machine);           walks tables, lists and maps as they lie; takes no lock
//   Told told; told.add(event, names);      event by event
//   differences(look, told.look())          sentences; none if they agree
#pragma once

#include <fmt/format.h>

#include <list>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "mm/machine.hpp"
#include "record/reader.hpp"

namespace weir::test {

/// What is not there (free frames, empty entries, lists without pages) has no place in the maps.
struct Look {
  struct Frame {
    int64_t mapcount = 0;  ///< mappings
    int64_t count = 0;
    uint64_t flags = 0;
    uint64_t mapping = 0;  ///< 0 none 1 file 2 anonymous 4 merged
    auto operator<=>(const Frame&) const = default;
  };
  std::map<uint64_t, uint64_t> ptes;  ///< pte_subject -> PTE
  std::map<uint64_t, Frame> frames;   ///< pfn; those with users
  std::map<std::pair<uint64_t, uint64_t>, std::vector<uint64_t>>
      lru;                                  ///< zone (0: the node's), list -> pfns, newest first
  std::map<uint64_t, uint64_t> swap_map;    ///< entry -> map
  std::map<uint64_t, uint64_t> swap_cache;  ///< entry -> pfn
  std::map<uint64_t, uint64_t> page_cache;  ///< inode << 48 | index -> pfn
  std::map<uint64_t, int64_t> nr_free;      ///< zone
  std::map<uint64_t, uint64_t> free_area;   ///< zone << 8 | order -> blocks
  std::map<uint64_t, uint64_t> pcp;         ///< zone << 16 | CPU -> pages
  std::map<uint64_t, uint64_t> marks;       ///< zone << 8 | mark
  std::map<uint64_t, int64_t> rss;          ///< mm; 0 is left out
  std::map<uint64_t, std::string> tasks;    ///< pid -> "mm NAME"
  std::set<uint64_t> mms;                   ///< address spaces that a task has
};

namespace look_detail {

inline void walk(Look& look, const Machine& m, uint64_t id, const Pte* table, unsigned shift, uint64_t base) {
  for (uint64_t i = 0; i < PTRS_PER_TABLE; ++i) {
    if (pte_none(table[i])) continue;
    const uint64_t address = base + (i << shift);
    if (shift == PAGE_SHIFT)
      look.ptes[id << 48 | address] = table[i].v;
    else
      walk(look, m, id, reinterpret_cast<const Pte*>(m.mem.address(pte_pfn(table[i]))), shift - 9, address);
  }
}

inline void lists(Look& look, const Machine& m, uint64_t zone, const LruVec& lruvec) {
  for (uint64_t list = 0; list < NR_LRU_LISTS; ++list)
    for (const Page& page : lruvec.lists[list]) look.lru[{zone, list}].push_back(m.mem.pfn(page).v);
}

}  // namespace look_detail

inline Look look_at(Machine& m) WEIR_NO_THREAD_SAFETY_ANALYSIS {
  Look look;
  for (const Task& task : m.tasks.list()) {
    if (task.mm == nullptr) continue;
    look.tasks[static_cast<uint64_t>(task.pid)] = fmt::format("{} {}", task.mm->id, task.comm);
    if (!look.mms.insert(task.mm->id).second || task.mm->pgd == nullptr) continue;
    look_detail::walk(look, m, task.mm->id, reinterpret_cast<const Pte*>(task.mm->pgd), 39, 0);
    if (task.mm->get_mm_rss() != 0) look.rss[task.mm->id] = task.mm->get_mm_rss();
  }
  for (int64_t i = 0; i < m.mem.frames.v; ++i) {
    const Page& page = m.mem.page(Pfn(static_cast<uint64_t>(i)));
    const uintptr_t mapping = page.mapping.load();
    const uint64_t flags = page.flags.load();
    const bool of_slab = (flags & flag_bit(PageFlag::slab)) != 0;
    if (page_count(page) != 0)
      look.frames[static_cast<uint64_t>(i)] = {page_mapcount(page), page_count(page), flags,
                                               mapping == 0 || of_slab ? 0 : 1 + (mapping & 3)};
    if (mapping != 0 && (mapping & PAGE_MAPPING_ANON) == 0 && !of_slab)
      look.page_cache[reinterpret_cast<const AddressSpace*>(mapping)->host_ino << 48 | page.index] =
          static_cast<uint64_t>(i);
    if ((flags & flag_bit(PageFlag::swapcache)) != 0) look.swap_cache[page.private_] = static_cast<uint64_t>(i);
  }
  look_detail::lists(look, m, 0, m.node.lruvec);
  for (const Zone& zone : m.node.zones) {
    if (!zone.populated()) continue;
    const auto id = static_cast<uint64_t>(zone.type);
    if (m.profile.zone_lists) look_detail::lists(look, m, id, zone.lruvec);
    look.nr_free[id] = zone.nr_free.load();
    for (uint64_t order = 0; order < MAX_ORDER; ++order)
      if (zone.free_area[order].nr_free != 0) look.free_area[id << 8 | order] = zone.free_area[order].nr_free;
    for (uint64_t cpu = 0; cpu < zone.nr_pcp; ++cpu)
      if (zone.pcp[cpu].count != 0) look.pcp[id << 16 | cpu] = static_cast<uint64_t>(zone.pcp[cpu].count);
    for (uint64_t mark = 0; mark < 3; ++mark)
      look.marks[id << 8 | mark] = static_cast<uint64_t>(zone.wmark(static_cast<Watermark>(mark)));
  }
  for (unsigned type = 0; type < MAX_SWAPFILES; ++type) {
    const SwapInfo* si = m.swap_files.swap_info(type);
    if (si == nullptr) continue;
    for (uint64_t offset = 1; offset < si->max; ++offset)
      if (const uint64_t map = si->swap_map16 ? si->swap_map16[offset] : si->swap_map[offset]; map != 0)
        look.swap_map[swp_entry(type, offset).val] = map;
  }
  return look;
}

/// The page's replay (src/explore/web/replay.ts) again, shorter: what the events say.
class Told {
 public:
  explicit Told(bool zone_lists) : zone_lists_(zone_lists) {}

  void add(State what, uint64_t subject, uint64_t before, uint64_t after) {
    const auto put = [](auto& map, uint64_t key, auto value) {
      if (value == 0)
        map.erase(key);
      else
        map[key] = value;
    };
    switch (what) {
      case State::pte: put(now_.ptes, subject, after); break;
      case State::mapcount: now_.frames[subject].mapcount = static_cast<int64_t>(after); break;
      case State::page_count: now_.frames[subject].count = static_cast<int32_t>(after); break;
      case State::page_flags: now_.frames[subject].flags = after; break;
      case State::page_mapping: now_.frames[subject].mapping = after; break;
      case State::lru: {
        const uint64_t zone = zone_of(subject);
        if (before < NR_LRU_LISTS) std::erase(now_.lru[{zone, before}], subject);
        if (after < NR_LRU_LISTS) {
          auto& list = now_.lru[{zone, after}];
          list.insert(list.begin(), subject);
        }
        break;
      }
      case State::lru_tail: {
        auto& list = now_.lru[{zone_of(subject), before}];
        std::erase(list, subject);
        list.push_back(subject);
        break;
      }
      case State::swap_map: put(now_.swap_map, subject, after); break;
      case State::swap_cache: put(now_.swap_cache, subject, after); break;
      case State::page_cache: put(now_.page_cache, subject, after); break;
      case State::nr_free: now_.nr_free[subject] = static_cast<int64_t>(after); break;
      case State::free_area: put(now_.free_area, subject, after); break;
      case State::pcp_count: put(now_.pcp, subject, after); break;
      case State::zone_mark: now_.marks[subject] = after; break;
      case State::zone_span: spans_.push_back({subject, before, after}); break;
      case State::rss: put(now_.rss, subject, static_cast<int64_t>(after)); break;
      case State::task_comm: {
        char name[17] = {};
        std::memcpy(name, &before, 8);
        std::memcpy(name + 8, &after, 8);
        names_[subject] = name;
        break;
      }
      case State::mm_task:
        if (before != 0) owners_.erase(before);
        if (after != 0) owners_[after] = subject;
        break;
      default: break;
    }
  }

  [[nodiscard]] Look look() const {
    Look look = now_;
    std::erase_if(look.frames, [](const auto& f) { return f.second.count == 0; });
    std::erase_if(look.lru, [](const auto& list) { return list.second.empty(); });
    for (auto* pfns : {&look.swap_cache, &look.page_cache})
      for (auto& [key, pfn] : *pfns) --pfn;
    for (const auto& [pid, mm] : owners_) {
      look.mms.insert(mm);
      look.tasks[pid] = fmt::format("{} {}", mm, names_.contains(pid) ? names_.at(pid) : "");
    }
    return look;
  }

 private:
  struct Span {
    uint64_t zone, start, pages;
  };
  [[nodiscard]] uint64_t zone_of(uint64_t pfn) const {
    if (zone_lists_)
      for (const Span& s : spans_)
        if (pfn >= s.start && pfn < s.start + s.pages) return s.zone;
    return 0;
  }
  bool zone_lists_;
  std::vector<Span> spans_;
  Look now_;
  std::map<uint64_t, uint64_t> owners_;  // pid -> mm
  std::map<uint64_t, std::string> names_;
};

inline std::vector<std::string> differences(const Look& real, const Look& told) {
  std::vector<std::string> out;
  const auto value = [](const auto& v) {
    using V = std::decay_t<decltype(v)>;
    if constexpr (std::is_same_v<V, Look::Frame>)
      return fmt::format("mapcount {} count {} flags {:#x} mapping {}", v.mapcount, v.count, v.flags, v.mapping);
    else if constexpr (std::is_same_v<V, std::vector<uint64_t>>)
      return std::to_string(v.size()) + " pages " + nlohmann::json(v).dump().substr(0, 60);
    else if constexpr (std::is_same_v<V, std::string>)
      return v;
    else
      return fmt::format("{:#x}", v);
  };
  const auto compare = [&](const char* what, const auto& a, const auto& b, auto wanted) {
    const auto name = [](const auto& key) {
      if constexpr (requires { key.first; })
        return fmt::format("{}/{}", key.first, key.second);
      else
        return fmt::format("{:#x}", key);
    };
    for (const auto& [key, v] : a)
      if (wanted(key) && (!b.contains(key) || b.at(key) != v))
        out.push_back(fmt::format("{} {}: the machine has {}, the recording {}", what, name(key), value(v),
                                  b.contains(key) ? value(b.at(key)) : "nothing"));
    for (const auto& [key, v] : b)
      if (wanted(key) && !a.contains(key))
        out.push_back(fmt::format("{} {}: the machine has nothing, the recording {}", what, name(key), value(v)));
  };
  const auto all = [](const auto&) { return true; };
  // An address space that no task has yet, or any more, is not found by looking.
  compare("pte", real.ptes, told.ptes, [&](uint64_t key) { return real.mms.contains(key >> 48); });
  compare("frame", real.frames, told.frames, all);
  compare("lru", real.lru, told.lru, all);
  compare("swap_map", real.swap_map, told.swap_map, all);
  compare("swap_cache", real.swap_cache, told.swap_cache, all);
  compare("page_cache", real.page_cache, told.page_cache, all);
  compare("nr_free", real.nr_free, told.nr_free, all);
  compare("free_area", real.free_area, told.free_area, all);
  compare("pcp", real.pcp, told.pcp, all);
  compare("zone_mark", real.marks, told.marks, all);
  compare("rss", real.rss, told.rss, [&](uint64_t mm) { return real.mms.contains(mm); });
  compare("task", real.tasks, told.tasks, all);
  return out;
}

}  // namespace weir::test
