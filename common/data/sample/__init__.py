"""A small cohort of synthetic brain MRI with labels, ages and diagnoses, made from the MNI152 template.

Every image starts from the MNI152 T1, grey- and white-matter maps that ``nilearn`` carries (ICBM 2009a nonlinear
symmetric; Fonov et al., "Unbiased average age-appropriate brain templates from birth to adulthood", NeuroImage 2009). A
subject is the template under a smooth random deformation, with atrophy that grows with age and with diagnosis. Labels
and intensities come from the same deformed tissue maps, so labels follow the anatomy exactly. The scans are no
substitute for real data. Use them to try, teach and test a pipeline without a download.
"""

from .cohort import VERSION, make_sample
from .subject import make_subject

__all__ = ["VERSION", "make_sample", "make_subject"]
