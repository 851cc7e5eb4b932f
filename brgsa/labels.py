"""Abnormality label sets, in their published order.

Sources: the dataset pages of CT-RATE (Hamamci et al. 2024) and CT-RATE-LT (Lai et al. 2025). RAD-ChestCT's are the 16 labels
that CT-CLIP's external evaluation uses, in CT-RATE's wording.
"""

from __future__ import annotations

CT_RATE: tuple[str, ...] = (
    "Medical material",
    "Arterial wall calcification",
    "Cardiomegaly",
    "Pericardial effusion",
    "Coronary artery wall calcification",
    "Hiatal hernia",
    "Lymphadenopathy",
    "Emphysema",
    "Atelectasis",
    "Lung nodule",
    "Lung opacity",
    "Pulmonary fibrotic sequela",
    "Pleural effusion",
    "Mosaic attenuation pattern",
    "Peribronchial thickening",
    "Consolidation",
    "Bronchiectasis",
    "Interlobular septal thickening",
)

RAD_CHESTCT: tuple[str, ...] = (
    "Medical material",
    "Calcification",
    "Cardiomegaly",
    "Pericardial effusion",
    "Hiatal hernia",
    "Lymphadenopathy",
    "Emphysema",
    "Atelectasis",
    "Lung nodule",
    "Lung opacity",
    "Pulmonary fibrotic sequela",
    "Pleural effusion",
    "Peribronchial thickening",
    "Consolidation",
    "Bronchiectasis",
    "Interlobular septal thickening",
)

CT_RATE_LT: tuple[str, ...] = (
    "Pneumonia",
    "Pneumothorax",
    "Empyema",
    "Tuberculosis",
    "Pulmonary fibrosis",
    "Lung cyst",
    "Bronchial thickening",
    "Lung mass",
    "Osteophyte",
    "Rib fracture",
    "Atherosclerosis",
    "Pericardial calcification",
    "Spondylosis",
    "Pleural calcification",
    "Pneumomediastinum",
)

LABEL_SETS: dict[str, tuple[str, ...]] = {
    "ct-rate": CT_RATE,
    "rad-chestct": RAD_CHESTCT,
    "ct-rate-lt": CT_RATE_LT,
}
